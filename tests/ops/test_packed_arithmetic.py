"""What the CUDA kernels add and multiply in pairs of 16-bit numbers: float32, rounded afterwards, rounds like that too.

csrc/packed.cuh says why; here the exact sums and products say it, in rational numbers.
"""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
import torch


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bits, and sums beside a tie: one number, and another of half its spacing or close to that."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (2, 800), generator=generator).to(torch.int16)
    left, right = bits.view(dtype)
    digits = 8 if dtype is torch.bfloat16 else 11
    half_spacing = torch.randint(-2, 3, (800,), generator=generator) - digits
    near = torch.ldexp(left.float().abs().clamp(1e-3, 1e3), half_spacing).to(dtype)
    near = (near.view(torch.int16) & ~0xF | torch.randint(0, 3, (800,), generator=generator)).to(
        torch.int16
    )
    close = left.float().clamp(-1e3, 1e3).to(dtype)
    left, right = (
        torch.cat((left, close, close)),
        torch.cat((right, near.view(dtype), -near.view(dtype))),
    )
    there = left.isfinite() & right.isfinite()
    return left[there], right[there]


def is_nearest(rounded: torch.Tensor, exact: Fraction) -> bool:
    """To the nearest, of two equally near the even one. rounded: one number, finite."""
    value, bits = Fraction(rounded.item()), int(rounded.view(torch.int16))
    magnitude = bits & 0x7FFF
    distance = abs(value - exact)
    for other in (magnitude - 1, magnitude + 1):
        neighbour = torch.tensor(max(other, 0), dtype=torch.int16).view(rounded.dtype)
        if not neighbour.isfinite():
            continue
        away = abs((-1 if bits < 0 else 1) * Fraction(neighbour.item()) - exact)
        if away < distance or (away == distance and other >= 0 and magnitude % 2 == 1):
            return False
    return True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", [operator.add, operator.mul], ids=["sum", "product"])
def test_float32_rounded_afterwards_is_rounded_once(of, dtype: torch.dtype) -> None:
    left, right = pairs(dtype)
    rounded = of(left.float(), right.float()).to(dtype)
    checked = 0
    for a, b, found in zip(left, right, rounded, strict=True):
        if found.isfinite():
            assert is_nearest(found, of(Fraction(a.item()), Fraction(b.item()))), (a, b, found)
            checked += 1
    assert checked > 1200
