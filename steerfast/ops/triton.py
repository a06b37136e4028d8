"""The ops on the Triton kernel: any shape [..., D] in, outputs allocated here, one launch each.

``steer_halves_`` is a launch into a new stream, of which torch then keeps the steered rows: the kernel in
place would write the others too.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from steerfast.ops import reference
from steerfast.ops.arguments import explain, refuse_shared_memory
from steerfast.ops.forms import Parts, flat
from steerfast.ops.interface import Ops


def _step(parts: Parts) -> tuple[Tensor, Tensor | None]:
    explain(parts)
    x, residual, weight = parts.x, parts.residual, parts.weight
    stream = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    normed = None
    if weight is not None:
        normed = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    _launch(
        parts,
        None if x is None else _readable(x),
        _readable(residual),
        _rows(stream),
        None if normed is None else _rows(normed),
    )
    return stream, normed


def _write(parts: Parts) -> None:
    explain(parts)
    refuse_shared_memory(parts)
    targets = (
        [_rows(parts.residual)] if parts.x is None else [_rows(parts.residual), _rows(parts.x)]
    )
    aligned = [_aligned(rows) for rows in targets]
    stream, x = aligned[0], aligned[1] if len(aligned) == 2 else None
    _launch(parts, x, stream, stream, x)
    for target, rows in zip(targets, aligned, strict=True):
        if rows is not target:
            target.copy_(rows)


def _write_halves(parts: Parts) -> None:
    refuse_shared_memory(parts)
    reference.write_halves(parts, _step(parts)[0])


def _launch(
    parts: Parts, x: Tensor | None, residual: Tensor, stream: Tensor, normed: Tensor | None
) -> None:
    """The arguments of ``parts``, but the streams as rows [N, D]."""
    from steerfast.kernels.launch_table import config_for
    from steerfast.kernels.steer_add_rms_norm import launch

    weight, steering = parts.weight, parts.steering
    if weight is not None:
        weight = _aligned(weight)
    if steering is not None:
        steering = steering._replace(bank=_aligned(steering.bank))
    with_reads = steering is not None and steering.reads.shape[0] > 0
    config = config_for(
        residual.shape[1], residual.element_size(), with_reads, _arch(residual.device)
    )
    # Triton launches on the current device.
    with torch.cuda.device_of(residual):  # type: ignore[no-untyped-call]
        launch(x, residual, stream, weight, normed, parts.eps, parts.fp32_norm, steering, config)


@cache
def _arch(device: torch.device) -> str:
    """The name of a device in the launch table. A CPU, where Triton interprets, is not in it."""
    if device.type != "cuda" or torch.version.hip is not None:
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _readable(tensor: Tensor) -> Tensor:
    """Rows at one stride, aligned: a view where the layout allows, else a copy."""
    try:
        return _aligned(_rows(tensor))
    except RuntimeError:
        return _rows(tensor.contiguous())


def _aligned(tensor: Tensor) -> Tensor:
    """The same, or a copy where a view's rows lie off the 16 bytes at which contiguous ones start: the
    kernel relies on these, and with fewer elements at a time it would sum in another order."""
    size = tensor.element_size()
    strides_fit = tensor.ndim < 2 or tensor.shape[0] <= 1 or tensor.stride(0) * size % 16 == 0
    if tensor.shape[-1] * size % 16 or (strides_fit and tensor.data_ptr() % 16 == 0):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _rows(tensor: Tensor) -> Tensor:
    """The view [N, D] of [..., D]; RuntimeError where the layout has none with contiguous rows."""
    rows = tensor.view(tensor.shape[:-1].numel(), tensor.shape[-1])
    if rows.stride(1) != 1 and rows.shape[1] > 1:
        raise RuntimeError("the last dimension must be contiguous")
    return rows


_ops = Ops(flat(_step, _write, _write_halves), differentiable=reference.FLAT)
add_rms_norm, add_rms_norm_ = _ops.add_rms_norm, _ops.add_rms_norm_
steer, steer_, steer_halves_ = _ops.steer, _ops.steer_, _ops.steer_halves_
steer_add, steer_rms_norm = _ops.steer_add, _ops.steer_rms_norm
steer_add_rms_norm, steer_add_rms_norm_ = _ops.steer_add_rms_norm, _ops.steer_add_rms_norm_
