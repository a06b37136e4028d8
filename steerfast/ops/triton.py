"""The ops on the Triton kernel: any shape [..., D] in, outputs allocated here, one launch each.

Signatures and results are those of ``steerfast.ops.reference``, which also takes the calls whose inputs
require grad. Checks are terse RuntimeErrors, as in csrc/call.h; ``steerfast.ops.arguments.explain`` has words
for each of them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from steerfast.ops import reference
from steerfast.ops.arguments import DTYPES, norm_order_flag
from steerfast.ops.fused import needs_grad
from steerfast.ops.records import MAX_READS, READ_WIDTH, RECORD_WIDTH
from steerfast.ops.reference import NormOrder, Steering


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    if needs_grad(x, residual, weight):
        return reference.add_rms_norm(x, residual, weight, eps, norm_order)
    fp32 = norm_order_flag("add_rms_norm", norm_order)
    return _with_norm(x, residual, weight, eps, fp32, None)


def steer_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> tuple[Tensor, Tensor]:
    if needs_grad(x, residual, weight):
        return reference.steer_add_rms_norm(x, residual, weight, eps, steering, norm_order)
    fp32 = norm_order_flag("steer_add_rms_norm", norm_order)
    return _with_norm(x, residual, weight, eps, fp32, steering)


def steer_rms_norm(
    stream: Tensor, weight: Tensor, eps: float, steering: Steering, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    if needs_grad(stream, weight):
        return reference.steer_rms_norm(stream, weight, eps, steering, norm_order)
    fp32 = norm_order_flag("steer_rms_norm", norm_order)
    return _with_norm(None, stream, weight, eps, fp32, steering)


def steer_add(x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
    if needs_grad(x, residual):
        return reference.steer_add(x, residual, steering)
    return _without_norm(x, residual, steering)


def steer(stream: Tensor, steering: Steering) -> Tensor:
    if needs_grad(stream):
        return reference.steer(stream, steering)
    return _without_norm(None, stream, steering)


def add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> None:
    _refuse_grad("add_rms_norm_", x, residual, weight)
    _in_place(x, residual, weight, eps, norm_order_flag("add_rms_norm_", norm_order), None)


def steer_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> None:
    _refuse_grad("steer_add_rms_norm_", x, residual, weight)
    fp32 = norm_order_flag("steer_add_rms_norm_", norm_order)
    _in_place(x, residual, weight, eps, fp32, steering)


def steer_(stream: Tensor, steering: Steering) -> None:
    _refuse_grad("steer_", stream)
    _check(None, stream, None, steering)
    target = _writable(stream)
    rows = _aligned(target)
    _launch(None, rows, rows, None, None, 0.0, False, steering)
    if rows is not target:
        target.copy_(rows)


def _with_norm(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    fp32: bool,
    steering: Steering | None,
) -> tuple[Tensor, Tensor]:
    _check(x, residual, weight, steering)
    stream = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    normed = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    inputs = _readable(x) if x is not None else None, _readable(residual)
    _launch(*inputs, _rows(stream), weight, _rows(normed), eps, fp32, steering)
    return stream, normed


def _without_norm(x: Tensor | None, residual: Tensor, steering: Steering) -> Tensor:
    _check(x, residual, None, steering)
    stream = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    inputs = _readable(x) if x is not None else None, _readable(residual)
    _launch(*inputs, _rows(stream), None, None, 0.0, False, steering)
    return stream


def _in_place(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    fp32: bool,
    steering: Steering | None,
) -> None:
    _check(x, residual, weight, steering)
    _require(weight.dtype == x.dtype, "in place, weight must have the dtype of the stream")
    targets = _writable(x), _writable(residual)
    x_rows, stream = _aligned(targets[0]), _aligned(targets[1])
    _launch(x_rows, stream, stream, weight, x_rows, eps, fp32, steering)
    for target, rows in zip(targets, (x_rows, stream), strict=True):
        if rows is not target:
            target.copy_(rows)


def _launch(
    x: Tensor | None,
    residual: Tensor,
    stream: Tensor,
    weight: Tensor | None,
    normed: Tensor | None,
    eps: float,
    fp32_norm: bool,
    steering: Steering | None,
) -> None:
    from steerfast.kernels.launch_table import config_for
    from steerfast.kernels.steer_add_rms_norm import launch

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
        launch(x, residual, stream, weight, normed, eps, fp32_norm, steering, config)


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


def _writable(tensor: Tensor) -> Tensor:
    """The same without a copy, and refused where rows share memory: they would race."""
    rows = _rows(tensor)
    _require(
        rows.shape[0] <= 1 or rows.stride(0) >= rows.shape[1],
        "in place, rows must not overlap",
    )
    return rows


def _rows(tensor: Tensor) -> Tensor:
    """The view [N, D] of [..., D]; RuntimeError where the layout has none with contiguous rows."""
    rows = tensor.view(tensor.shape[:-1].numel(), tensor.shape[-1])
    _require(rows.stride(1) == 1 or rows.shape[1] <= 1, "the last dimension must be contiguous")
    return rows


def _check(
    x: Tensor | None, residual: Tensor, weight: Tensor | None, steering: Steering | None
) -> None:
    """All but the range of slots, programs and bank rows, which only a synchronisation could tell."""
    device, dtype = residual.device, residual.dtype
    _require(residual.ndim >= 1 and dtype in DTYPES, "residual must be a [..., D] of floats")
    count, width = residual.shape[:-1].numel(), residual.shape[-1]
    if x is not None:
        _require(x.shape == residual.shape and x.dtype == dtype, "x must look like residual")
        _require(x.device == device, "x must be on the stream's device")
    parts: list[tuple[str, Tensor, torch.dtype, tuple[int, ...]]] = []
    if weight is not None:
        of_dtype = torch.float32 if weight.dtype == torch.float32 else dtype
        parts.append(("weight", weight, of_dtype, (width,)))
    if steering is not None:
        row_slot, row_gain, records, reads, bank = steering
        parts.append(("row_slot", row_slot, torch.int32, (count,)))
        parts.append(("row_gain", row_gain, torch.float32, (count,)))
        parts.append(("records", records, torch.int32, (*records.shape[:1], RECORD_WIDTH)))
        parts.append(("reads", reads, torch.int32, (*reads.shape[:1], MAX_READS, READ_WIDTH)))
        parts.append(("bank", bank, torch.float32, (*bank.shape[:1], width)))
    for name, tensor, wanted, shape in parts:
        fits = tensor.dtype == wanted and tensor.shape == shape and tensor.device == device
        if not (fits and tensor.is_contiguous()):
            raise RuntimeError(
                f"{name} must be a contiguous {wanted} {shape} on the stream's device"
            )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _refuse_grad(op: str, *tensors: Tensor) -> None:
    if needs_grad(*tensors):
        raise ValueError(
            f"{op}: an input requires grad, which an in-place op would lose; use {op[:-1]} or torch.no_grad()"
        )
