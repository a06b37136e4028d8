"""The definition: every op of the package in plain torch, any dtype, any device, differentiable.

The compiled backends are tested against these functions. ``compute=torch.float64`` evaluates the same
formula in double precision, from the same rounded ``h``; ``steerfast.testing`` builds its bounds on that.
What the steering adds to a row is ``steerfast.ops.contribution``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steerfast.ops.contribution import contribution
from steerfast.ops.records import FINISH_CODES

NormOrder = Literal["hf", "fp32"]


class Steering(NamedTuple):
    """What one site's kernel reads. All tensors contiguous, on the device of the stream.

    row_slot: [N] int32, the slot of each row; -1 means not steered.
    row_gain: [N] float32, the schedule's gain g; 0 means not steered.
    records: [S, 4] int32, this site's record of each slot, see ``steerfast.ops.records``.
    reads: [P, 16, 12] int32, the programs of reading terms, see ``steerfast.ops.records``; P may be 0.
    bank: [V, D] float32, the deltas and the directions of all slots and sites.
    """

    row_slot: Tensor
    row_gain: Tensor
    records: Tensor
    reads: Tensor
    bank: Tensor


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
    record = steering.records[steering.row_slot.clamp(min=0).long()]
    something = (record[:, 0] >= 0) | (record[:, 3] > 0)
    return (steering.row_slot >= 0) & something & (steering.row_gain != 0)


def steer_rows(h: Tensor, steering: Steering, compute: torch.dtype | None = None) -> Tensor:
    """``finish(h + g * (delta[slot] + sum_i u_i(h)))`` for the active rows, h itself for the others; not rounded.

    h: [..., D]; its rows, flattened, are the N rows of ``steering``. Returns ``compute`` dtype, by
    default float32, or float64 for a float64 stream.
    ``preserve`` multiplies by |h|/|y|, ``shrink`` by min(1, |h|/|y|); both by 1 where |y| = 0.
    """
    compute = compute or torch.promote_types(h.dtype, torch.float32)
    rows = h.reshape(math.prod(h.shape[:-1]), h.shape[-1]).to(compute)
    record = steering.records[steering.row_slot.clamp(min=0).long()]
    finish, active = record[:, 1], active_rows(steering)
    added = contribution(rows, record, steering.reads, steering.bank)
    y = rows + steering.row_gain.to(compute)[:, None] * added
    # The inner where keeps sqrt and division away from rows without a finish, so that gradients stay finite.
    rescaled = (active & (finish > 0))[:, None]
    before = torch.where(rescaled, rows, 1.0).pow(2).sum(-1, keepdim=True).sqrt()
    after = torch.where(rescaled, y, 1.0).pow(2).sum(-1, keepdim=True).sqrt()
    factor = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
    factor = torch.where((finish == FINISH_CODES["shrink"])[:, None], factor.clamp(max=1.0), factor)
    y = torch.where(rescaled, y * factor, y)
    return torch.where(active[:, None], y, rows).reshape(h.shape)


def steer(stream: Tensor, steering: Steering) -> Tensor:
    """Reference of ``steerfast.ops.steer``."""
    steered = steer_rows(stream, steering).to(stream.dtype)
    # Through float32 and back a NaN may lose its payload; rows that are not steered keep their very bits.
    active = active_rows(steering).reshape(*stream.shape[:-1], 1)
    return torch.where(active, steered, stream)


def steer_add(x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
    """Reference of ``steerfast.ops.steer_add``."""
    return steer(residual + x, steering)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    """Reference of ``steerfast.ops.add_rms_norm``."""
    stream = residual + x
    return stream, rms_norm(stream, weight, eps, norm_order)


def steer_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> tuple[Tensor, Tensor]:
    """Reference of ``steerfast.ops.steer_add_rms_norm``."""
    stream = steer_add(x, residual, steering)
    return stream, rms_norm(stream, weight, eps, norm_order)


def steer_rms_norm(
    stream: Tensor, weight: Tensor, eps: float, steering: Steering, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    """Reference of ``steerfast.ops.steer_rms_norm``."""
    steered = steer(stream, steering)
    return steered, rms_norm(steered, weight, eps, norm_order)


def add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> None:
    """Reference of ``steerfast.ops.add_rms_norm_``."""
    stream, normed = add_rms_norm(x, residual, weight, eps, norm_order)
    residual.copy_(stream)
    x.copy_(normed)


def steer_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> None:
    """Reference of ``steerfast.ops.steer_add_rms_norm_``."""
    stream, normed = steer_add_rms_norm(x, residual, weight, eps, steering, norm_order)
    residual.copy_(stream)
    x.copy_(normed)


def steer_(stream: Tensor, steering: Steering) -> None:
    """Reference of ``steerfast.ops.steer_``."""
    stream.copy_(steer(stream, steering))


def steer_halves_(x: Tensor, residual: Tensor, steering: Steering) -> None:
    """Reference of ``steerfast.ops.steer_halves_``."""
    active = active_rows(steering).reshape(*residual.shape[:-1], 1)
    residual.copy_(torch.where(active, steer_add(x, residual, steering), residual))
    x.copy_(torch.where(active, 0.0, x))
