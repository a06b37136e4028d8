"""Conformance cases: inputs, the float64 answer, and how far a backend may be from it.

A case is data, shared by the tests, the benchmarks and anybody who writes another backend:

    for case in cases():
        stream, normed = my_op(case.x, case.residual, case.weight, case.eps, case.steering)
        case.check(stream, normed)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerfast.reference import Steering, rms_norm, steer_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 32, 63, 100, 576, 1025)
ROWS = (1, 5, 64)
RELATIVE = 2.0**-20  # slack for float32 arithmetic, relative to the magnitudes that are summed


@dataclass(frozen=True)
class Case:
    """One call of ``steer_add_rms_norm``. x, residual: [N, D]; weight: [D]; bank: [V, D]."""

    id: str
    x: Tensor
    residual: Tensor
    weight: Tensor
    eps: float
    steering: Steering

    @property
    def h(self) -> Tensor:
        """The rounded sum that all steering reads."""
        return self.residual + self.x

    @property
    def active(self) -> Tensor:
        """[N] bool: the rows that are steered."""
        slot, gain, records, _ = self.steering
        return (slot >= 0) & (gain != 0) & (records[slot.clamp(min=0).long(), 0] >= 0)

    @property
    def stream(self) -> Tensor:
        """The exact new stream, float64, [N, D]."""
        return steer_rows(self.h, self.steering, torch.float64)

    @property
    def tolerance(self) -> Tensor:
        """Element by element: 1 ulp_T + 2^-20 (|h| + |gain * delta|); 0 in rows that are not steered."""
        slot, gain, records, bank = self.steering
        delta_row = records[slot.clamp(min=0).long(), 0].clamp(min=0).long()
        contribution = gain.double()[:, None] * bank[delta_row].double()
        slack = RELATIVE * (self.h.double().abs() + contribution.abs())
        bound = ulp(self.stream, self.x.dtype) + slack
        return torch.where(self.active[:, None], bound, 0.0)

    def norm_tolerance(self, stream: Tensor) -> Tensor:
        """For ``normed`` against the float64 norm of the very stream that a backend returned: one
        rounding to T before the weight, one to the result's dtype after it."""
        unit = rms_norm(
            stream, torch.ones_like(self.weight, dtype=torch.float64), self.eps, torch.float64
        )
        exact = self.weight.double() * unit
        return (
            self.weight.double().abs() * ulp(unit, stream.dtype)
            + ulp(exact, torch.promote_types(self.weight.dtype, stream.dtype))
            + RELATIVE * exact.abs()
        )

    def check(self, stream: Tensor, normed: Tensor | None = None) -> None:
        """AssertionError with the worst element if a result is out of bounds."""
        error = (stream.double() - self.stream).abs() - self.tolerance
        assert not (error > 0).any(), _worst(self.id, "stream", error, stream.double(), self.stream)
        if normed is None:
            return
        exact = rms_norm(stream, self.weight, self.eps, torch.float64)
        error = (normed.double() - exact).abs() - self.norm_tolerance(stream)
        assert not (error > 0).any(), _worst(self.id, "normed", error, normed.double(), exact)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of ``dtype`` at ``value`` (float64), its smallest subnormal at least."""
    info = torch.finfo(dtype)
    magnitude = value.abs().double().clamp(min=info.smallest_normal)
    return 2.0 ** magnitude.log2().floor() * info.eps


def cases(
    dtypes: Sequence[torch.dtype] = DTYPES,
    widths: Sequence[int] = WIDTHS,
    rows: Sequence[int] = ROWS,
    *,
    seed: int = 0,
) -> Iterator[Case]:
    """Random data with an outlier channel, as Llama's streams have; slots of every kind in each batch:
    -1, no active term, and finish none, preserve, shrink; gains 0, 1 and others."""
    for dtype in dtypes:
        for width in widths:
            for count in rows:
                generator = torch.Generator().manual_seed(seed + 1000 * width + count)
                yield _case(dtype, width, count, generator)


def _case(dtype: torch.dtype, width: int, count: int, generator: torch.Generator) -> Case:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    residual = 3.0 * normal(count, width)
    residual[:, width // 3] *= 50.0
    records = torch.tensor(
        [[0, 0, 0, 0], [1, 1, 0, 0], [2, 2, 0, 0], [-1, 1, 0, 0]], dtype=torch.int32
    )
    slots = torch.randint(-1, 4, (count,), generator=generator, dtype=torch.int32)
    slots[0] = 0  # the smallest batch steers too
    gains = torch.tensor([1.0, 1.0, 0.0, 0.37, -1.5])
    steering = Steering(
        slots,
        gains[torch.randint(0, 5, (count,), generator=generator)] if count > 1 else torch.ones(1),
        records,
        torch.stack([2.0 * normal(width), 10.0 * normal(width), 0.1 * normal(width)]),
    )
    weight = 1.0 + 0.1 * normal(width)
    name = f"{str(dtype).removeprefix('torch.')}-N{count}-D{width}"
    return Case(
        name, normal(count, width).to(dtype), residual.to(dtype), weight.to(dtype), 1e-5, steering
    )


def _worst(case: str, what: str, excess: Tensor, got: Tensor, wanted: Tensor) -> str:
    row, column = divmod(int(excess.argmax()), excess.shape[-1])
    return (
        f"{case}: {what}[{row}, {column}] is {got[row, column]:.9g}, wanted {wanted[row, column]:.9g}, "
        f"{excess[row, column]:.3g} beyond its tolerance; {int((excess > 0).sum())} elements are out"
    )
