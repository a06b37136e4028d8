"""A conformance case: inputs, the float64 answer, and how far a backend may be from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from steerfast.ops.forms import NormOrder
from steerfast.ops.records import Steering
from steerfast.ops.reference import active_rows, rms_norm, steer_rows
from steerfast.testing.bounds import RELATIVE, UNDERFLOW, analyse


@dataclass(frozen=True)
class Case:
    """One call of ``steer_add_rms_norm``; from ``h`` on also of ``steer_rms_norm`` and ``steer``.

    x, residual: [N, D] of dtype T. weight: [D] of dtype T or float32. steering: ``reference.Steering``.
    family: what the case is about, the first part of its id.
    """

    id: str
    x: Tensor
    residual: Tensor
    weight: Tensor
    eps: float
    steering: Steering
    norm_order: NormOrder = "hf"
    family: str = ""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What ``steer_add_rms_norm`` takes, in its order, the norm's order included."""
        return self.x, self.residual, self.weight, self.eps, self.steering, self.norm_order

    def arguments_on(self, device: str) -> tuple[Any, ...]:
        """``arguments`` on a device, copied: free to be written to."""
        x, residual, weight = (
            t.to(device, copy=True) for t in (self.x, self.residual, self.weight)
        )
        steering = Steering(*(t.to(device, copy=True) for t in self.steering))
        return x, residual, weight, self.eps, steering, self.norm_order

    @cached_property
    def h(self) -> Tensor:
        """The rounded sum that all steering reads, [N, D] of dtype T."""
        return self.residual + self.x

    @cached_property
    def active(self) -> Tensor:
        """[N] bool: the rows that are steered; the others keep the bits of h."""
        return active_rows(self.steering)

    @cached_property
    def stream(self) -> Tensor:
        """The exact new stream, float64, [N, D], from the rounded h and the float32 table."""
        return steer_rows(self.h, self.steering, torch.float64)

    @cached_property
    def tolerance(self) -> Tensor:
        """[N, D] float64: how far an element of the new stream may be from ``stream``.

            ulp_T(stream_j) / 2 + factor * slack_j + |stream_j| * (2^-20 + |slack| / |y|)

        First the one rounding to T, to nearest (a contract of a whole ulp would let truncation pass).
        slack is ``bounds.analyse``'s, what float32 arithmetic may do to y before the finish; factor is
        the finish's (1 without one), which multiplies it; the last part, only where there is a finish,
        is the factor's own error, since its |y| is the norm of a sum that is off by slack. 0 in rows
        not steered.
        """
        bounds = analyse(self.h, self.steering)
        bound = bounds.after_finish(self.stream) + 0.5 * ulp(self.stream, self.x.dtype)
        return torch.where(self.active[:, None], bound, 0.0)

    def norm(self, stream: Tensor) -> Tensor:
        """[N, D] float64: the exact norm of the very stream that a backend returned.

        unit = stream / sqrt(mean(stream^2) + eps). "hf": weight * round_T(unit); "fp32": weight * unit.
        """
        unit = self._unit(stream)
        rounded = unit.to(stream.dtype).double() if self.norm_order == "hf" else unit
        return self.weight.double() * rounded

    def norm_tolerance(self, stream: Tensor) -> Tensor:
        """[N, D] float64: how far an element of ``normed`` may be from ``norm``, for equal streams.

            ulp(exact) / 2 + 2^-20 |exact| + 2^-145 (1 + |weight|) + |weight| ulp_T(unit)

        with exact = norm(stream). First the rounding to the result's dtype, the wider of T and the
        weight's; then float32's sum of squares and square root, and its products where they are subnormal. The last part is for order "hf", and there for those elements alone
        whose unit lies within 2^-20 |unit| of a tie, so that float32 may round it to the other side.
        """
        exact, unit = self.norm(stream), self._unit(stream)
        bound = 0.5 * ulp(exact, torch.promote_types(self.weight.dtype, stream.dtype))
        bound = bound + RELATIVE * exact.abs() + UNDERFLOW * (1.0 + self.weight.double().abs())
        if self.norm_order == "fp32":
            return bound
        spacing = ulp(unit, stream.dtype)
        to_tie = 0.5 * spacing - (unit - unit.to(stream.dtype).double()).abs()
        undecided = to_tie <= RELATIVE * unit.abs()
        return bound + torch.where(undecided, self.weight.double().abs() * spacing, 0.0)

    def _unit(self, stream: Tensor) -> Tensor:
        ones = torch.ones_like(self.weight, dtype=torch.float64)
        return rms_norm(stream, ones, self.eps, compute=torch.float64)

    def check(self, stream: Tensor, normed: Tensor | None = None) -> None:
        """AssertionError with the worst element if a result is out of bounds, or of the wrong shape or dtype.

        stream, normed: [N, D], on any device; normed, where given, is checked against this very stream.
        """
        stream = stream.detach().to(self.x.device)
        _assert_like(self.id, "stream", stream, self.x.shape, self.x.dtype)
        _assert_within(self.id, "stream", stream, self.stream, self.tolerance)
        idle = ~self.active
        assert torch.equal(bits(stream[idle]), bits(self.h[idle])), (
            f"{self.id}: a row that is not steered differs from residual + x"
        )
        if normed is None:
            return
        normed = normed.detach().to(self.x.device)
        wanted = torch.promote_types(self.weight.dtype, self.x.dtype)
        _assert_like(self.id, "normed", normed, self.x.shape, wanted)
        bound = self.norm_tolerance(stream)
        _assert_within(self.id, "normed", normed, self.norm(stream), bound)


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers: equal where the bits are, NaN and -0 included."""
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of ``dtype`` at ``value`` (float64), its smallest subnormal at least."""
    info = torch.finfo(dtype)
    magnitude = value.abs().double().clamp(min=info.smallest_normal)
    return info.eps * torch.ldexp(torch.ones_like(magnitude), torch.frexp(magnitude).exponent - 1)


def _assert_like(case: str, what: str, got: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    assert (got.shape, got.dtype) == (shape, dtype), (
        f"{case}: {what} is {got.dtype} {list(got.shape)}, wanted {dtype} {list(shape)}"
    )


def _assert_within(case: str, what: str, got: Tensor, wanted: Tensor, bound: Tensor) -> None:
    excess = (got.double() - wanted).abs() - bound
    out = ~(excess <= 0)  # NaN is out too
    if not out.any():
        return
    worst = torch.where(out, excess.nan_to_num(nan=torch.inf), -torch.inf)
    row, column = divmod(int(worst.argmax()), got.shape[-1])
    raise AssertionError(
        f"{case}: {what}[{row}, {column}] is {got[row, column].item():.9g}, wanted "
        f"{wanted[row, column].item():.9g} within {bound[row, column].item():.3g}; "
        f"{int(out.sum())} elements in {int(out.any(-1).sum())} rows are out"
    )
