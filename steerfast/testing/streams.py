"""Streams and directions to steer: ordinary ones and those that break kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Source:
    """Random numbers of one case; everything in it follows from its seed."""

    generator: torch.Generator
    width: int
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """low <= result < high"""
        return int(torch.randint(low, high, (), generator=self.generator))

    def outliers(self) -> list[int]:
        """One or two channels that dwarf the others, as the streams and vectors of Llama models have."""
        return sorted({self.width // 3, (4 * self.width) // 5})

    def stream(self, rows: int) -> tuple[Tensor, Tensor]:
        """(x, residual), each [rows, D] of T, with outlier channels in the residual."""
        residual = 3.0 * self.normal(rows, self.width)
        for place, channel in enumerate(self.outliers()):
            residual[:, channel] *= (50.0, 90.0)[place]
        return self.normal(rows, self.width).to(self.dtype), residual.to(self.dtype)

    def typical_norm(self) -> float:
        """|h| of ``stream`` within a factor of two or so."""
        return 3.0 * math.sqrt(self.width + 2500.0 + (8100.0 if self.width > 1 else 0.0))

    def direction(self, outlier: float = 0.0) -> Tensor:
        """[D] of norm 1, float32, normalised in float64; outlier times larger in its outlier channels."""
        values = self.normal(self.width)
        if outlier:
            values[self.outliers()] *= outlier
        return unit(values)

    def plane(self) -> tuple[Tensor, Tensor]:
        """Two orthonormal directions; for D = 1 the second is zero."""
        first = self.direction().double()
        second = self.normal(self.width).double()
        second = second - (second @ first) * first
        second = second - (second @ first) * first
        return first.float(), unit(second) if self.width > 1 else torch.zeros(self.width)


def unit(values: Tensor) -> Tensor:
    """values / |values|, rounded to float32 once."""
    exact = values.double()
    scaled: Tensor = exact / torch.linalg.vector_norm(exact)
    return scaled.float()


def uniform_axis(width: int) -> Tensor:
    """[D] of norm exactly 1 in any arithmetic: the largest 4^k <= D entries are 2^-k."""
    k = int(math.log2(width)) // 2
    axis = torch.zeros(width)
    axis[width - 4**k :] = 2.0**-k
    return axis


def _ordinary(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    return source.stream(rows)


def _denormal(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    """Ordinary rows in which two elements of three are subnormal, or zero of either sign."""
    x, residual = source.stream(rows)
    tiny = torch.finfo(source.dtype).smallest_normal
    small = (tiny * source.normal(rows, source.width)).to(source.dtype)
    small = torch.where(source.normal(rows, source.width) > 1.0, -0.0, small.double()).to(x.dtype)
    chosen = source.normal(rows, source.width) > -0.4
    if source.width > 1:
        chosen[:, source.outliers()[0]] = False
    else:
        chosen[:] = False
    return torch.where(chosen, small, x), torch.where(chosen, -0.0, residual.double()).to(x.dtype)


def _extreme(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    """Norms up to 2^58 and down to 2^-55, or what float16 holds: sums of squares stay normal in float32."""
    x, residual = source.stream(rows)
    low, high = (-4.0, 12.0) if source.dtype is torch.float16 else (-55.0, 58.0)
    power = low + (high - low) * torch.rand((rows, 1), generator=source.generator).double()
    power[0::4], power[1::4] = high, low
    scale = 2.0**power / source.typical_norm()
    return (x.double() * scale).to(x.dtype), (residual.double() * scale).to(x.dtype)


def _zero(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    """Three rows of four sum to zero: x = -residual, or zeros of either sign."""
    x, residual = source.stream(rows)
    x[0::4] = -residual[0::4]
    x[1::4], residual[1::4] = 0.0, -0.0
    x[2::4], residual[2::4] = -0.0, -0.0
    return x, residual


def _axis(source: Source, rows: int) -> tuple[Tensor, Tensor]:
    """Rows exactly along ``uniform_axis`` and exactly against it, and ordinary ones."""
    x, residual = source.stream(rows)
    along = uniform_axis(source.width)
    for row in range(rows):
        if row % 4 < 3:
            sign = -1.0 if row % 4 == 0 else 1.0
            residual[row] = (sign * 2.0 ** source.integer(-3, 9) * along).to(source.dtype)
            x[row] = 0.0
    return x, residual


STREAMS = {
    "ordinary": _ordinary,
    "denormal": _denormal,
    "extreme": _extreme,
    "zero": _zero,
    "axis": _axis,
}
