"""The definition: every op of the package in plain torch, any dtype, any device, differentiable.

One step, ``residual_step``, has all the ops as its parts. The compiled backends are tested against it.
``compute=torch.float64`` evaluates the same
formula in double precision, from the same rounded ``h``; ``steerfast.testing`` builds its bounds on that.
What the steering adds to a row is ``steerfast.ops.contribution``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steerfast.ops.arguments import refuse_shared_memory
from steerfast.ops.contribution import contribution
from steerfast.ops.forms import NormOrder, Parts, flat
from steerfast.ops.interface import Ops
from steerfast.ops.records import FINISH_CODES, Steering


def rms_norm(
    stream: Tensor,
    weight: Tensor,
    eps: float,
    norm_order: NormOrder = "hf",
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """``weight * round_T(s * rsqrt(mean(s^2) + eps))``, s = stream in float32: LlamaRMSNorm's rounding order.

    ``norm_order="fp32"`` leaves the inner rounding out, as vLLM's kernel does: one rounding at the end.
    stream: [..., D] of dtype T. weight: [D] of dtype T or float32; the result has their promoted
    dtype, as in transformers.
    """
    wide = stream.to(compute)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if compute is torch.float64:
        return weight.to(compute) * normed
    if norm_order == "fp32":
        promoted = torch.promote_types(weight.dtype, stream.dtype)
        return (weight.to(compute) * normed).to(promoted)
    return weight * normed.to(stream.dtype)


def active_rows(steering: Steering) -> Tensor:
    """[N] bool: slot >= 0, gain not 0, and the slot's record names a delta or a program."""
    record = _records_of_rows(steering)
    something = (record[:, 0] >= 0) | (record[:, 3] > 0)
    return (steering.row_slot >= 0) & something & (steering.row_gain != 0)


def steer_rows(h: Tensor, steering: Steering, compute: torch.dtype | None = None) -> Tensor:
    """``finish(h + g * (delta[slot] + sum_i u_i(h)))`` for the active rows, h itself for the others; not rounded.

    h: [..., D]; its rows, flattened, are the N rows of ``steering``. Returns ``compute`` dtype, by
    default float32, or float64 for a float64 stream.
    ``preserve`` multiplies by |h|/|y|, ``shrink`` by min(1, |h|/|y|); both by 1 where |y| is 0 or not finite. Lengths, their
    quotient and product are float64, which squares any float32. Gradients are those of the formula, with the subgradient 0 of a
    length that is 0: a row h = 0 has none through |h|, and y = 0 none through the factor.
    """
    compute = compute or torch.promote_types(h.dtype, torch.float32)
    rows = h.reshape(math.prod(h.shape[:-1]), h.shape[-1]).to(compute)
    active = active_rows(steering)
    # What no row may read (slot -1's record, its gain) stays out of values and gradients.
    record = torch.where(active[:, None], _records_of_rows(steering), _nothing(steering))
    gain = torch.where(active, steering.row_gain, 0.0).to(compute)[:, None]
    y = rows + gain * contribution(rows, record, steering.reads, steering.bank)
    y = torch.where((record[:, 1] > 0)[:, None], _finished(rows, y, record[:, 1]), y)
    return torch.where(active[:, None], y, rows).reshape(h.shape)


def _records_of_rows(steering: Steering) -> Tensor:
    """[N, 4] int32; of slot 0 where the slot is -1."""
    return steering.records[steering.row_slot.clamp(min=0).long()]


def _nothing(steering: Steering) -> Tensor:
    """The record of a slot that does nothing: no delta, no finish, no reads."""
    return torch.tensor([-1, 0, 0, 0], dtype=torch.int32, device=steering.records.device)


def _finished(rows: Tensor, y: Tensor, finish: Tensor) -> Tensor:
    """y times the finish's factor; y itself in rows without a finish. rows, y: [N, D]. finish: [N] codes."""
    # The inner where keeps norms and division away from rows without a finish, so that gradients stay finite.
    wanted = (finish > 0)[:, None]
    before = _length(torch.where(wanted, rows, 1.0))
    after = _length(torch.where(wanted, y, 1.0))
    there = (after > 0) & after.isfinite()
    factor = torch.where(there, before / torch.where(there, after, 1.0), 1.0)
    factor = torch.where((finish == FINISH_CODES["shrink"])[:, None], factor.clamp(max=1.0), factor)
    return torch.where(wanted, (y.double() * factor).to(y.dtype), y)


def _length(rows: Tensor) -> Tensor:
    """[N, 1] float64."""
    length: Tensor = torch.linalg.vector_norm(rows.double(), dim=-1, keepdim=True)
    return length


def steered(stream: Tensor, steering: Steering) -> Tensor:
    """``steer_rows``, rounded to the stream's dtype; rows that are not steered keep their very bits."""
    rounded = steer_rows(stream, steering).to(stream.dtype)
    # Through float32 and back a NaN may lose its payload.
    return torch.where(_active(steering, stream), rounded, stream)


def residual_step(parts: Parts) -> tuple[Tensor, Tensor | None]:
    """What every form of the op is a part of: (stream, its norm, or None without a weight)."""
    stream = parts.residual if parts.x is None else parts.residual + parts.x
    if parts.steering is not None:
        stream = steered(stream, parts.steering)
    if parts.weight is None:
        return stream, None
    order: NormOrder = "fp32" if parts.fp32_norm else "hf"
    return stream, rms_norm(stream, parts.weight, parts.eps, order)


def write(parts: Parts) -> None:
    """In place: residual <- stream, x <- normed."""
    refuse_shared_memory(parts)
    stream, normed = residual_step(parts)
    parts.residual.copy_(stream)
    if parts.x is not None and normed is not None:
        parts.x.copy_(normed)


def write_halves(parts: Parts, stream: Tensor) -> None:
    """``steer_halves_``, given the stream of ``steer_add``: only rows that are steered change."""
    assert parts.x is not None
    assert parts.steering is not None
    active = _active(parts.steering, stream)
    parts.residual.copy_(torch.where(active, stream, parts.residual))
    parts.x.copy_(torch.where(active, 0.0, parts.x))


def _active(steering: Steering, stream: Tensor) -> Tensor:
    """[..., 1] for a stream [..., D]."""
    return active_rows(steering).reshape(*stream.shape[:-1], 1)


def _halves(parts: Parts) -> None:
    refuse_shared_memory(parts)
    write_halves(parts, residual_step(parts)[0])


FLAT = flat(residual_step, write, _halves)
_ops = Ops(FLAT)
add_rms_norm, add_rms_norm_ = _ops.add_rms_norm, _ops.add_rms_norm_
steer, steer_, steer_halves_ = _ops.steer, _ops.steer_, _ops.steer_halves_
steer_add, steer_rms_norm = _ops.steer_add, _ops.steer_rms_norm
steer_add_rms_norm, steer_add_rms_norm_ = _ops.steer_add_rms_norm, _ops.steer_add_rms_norm_
