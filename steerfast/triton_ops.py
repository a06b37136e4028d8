"""The ops on the Triton kernel: any shape [..., D] in, outputs allocated here, one launch each.

Signatures and results are those of ``steerfast.reference``, which also takes the calls whose inputs
require grad. Checks are terse RuntimeErrors, as in csrc/ops.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerfast import reference
from steerfast.ops import needs_grad
from steerfast.reference import RECORD_WIDTH, Steering

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if needs_grad(x, residual, weight):
        return reference.add_rms_norm(x, residual, weight, eps)
    return _with_norm(x, residual, weight, eps, None)


def steer_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Steering
) -> tuple[Tensor, Tensor]:
    if needs_grad(x, residual, weight):
        return reference.steer_add_rms_norm(x, residual, weight, eps, steering)
    return _with_norm(x, residual, weight, eps, steering)


def steer_rms_norm(
    stream: Tensor, weight: Tensor, eps: float, steering: Steering
) -> tuple[Tensor, Tensor]:
    if needs_grad(stream, weight):
        return reference.steer_rms_norm(stream, weight, eps, steering)
    return _with_norm(None, stream, weight, eps, steering)


def steer_add(x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
    if needs_grad(x, residual):
        return reference.steer_add(x, residual, steering)
    return _without_norm(x, residual, steering)


def steer(stream: Tensor, steering: Steering) -> Tensor:
    if needs_grad(stream):
        return reference.steer(stream, steering)
    return _without_norm(None, stream, steering)


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    _in_place(x, residual, weight, eps, None)


def steer_add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Steering
) -> None:
    _in_place(x, residual, weight, eps, steering)


def _with_norm(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, steering: Steering | None
) -> tuple[Tensor, Tensor]:
    _check(x, residual, weight, steering)
    stream = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    normed = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    inputs = _readable(x) if x is not None else None, _readable(residual)
    _launch(*inputs, _rows(stream), weight, _rows(normed), eps, steering)
    return stream, normed


def _without_norm(x: Tensor | None, residual: Tensor, steering: Steering) -> Tensor:
    _check(x, residual, None, steering)
    stream = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    inputs = _readable(x) if x is not None else None, _readable(residual)
    _launch(*inputs, _rows(stream), None, None, 0.0, steering)
    return stream


def _in_place(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Steering | None
) -> None:
    _check(x, residual, weight, steering)
    _require(weight.dtype == x.dtype, "in place, weight must have the dtype of the stream")
    x_rows, stream = _rows(x), _rows(residual)
    _launch(x_rows, stream, stream, weight, x_rows, eps, steering)


def _launch(
    x: Tensor | None,
    residual: Tensor,
    stream: Tensor,
    weight: Tensor | None,
    normed: Tensor | None,
    eps: float,
    steering: Steering | None,
) -> None:
    from steerfast.kernels.steer_add_rms_norm import Config, launch

    config = Config.for_width(residual.shape[1])
    # Triton launches on the current device.
    with torch.cuda.device_of(residual):  # type: ignore[no-untyped-call]
        launch(x, residual, stream, weight, normed, eps, steering, config)


def _readable(tensor: Tensor) -> Tensor:
    """Rows at one stride: a view where the layout allows, else a copy."""
    try:
        return _rows(tensor)
    except RuntimeError:
        return _rows(tensor.contiguous())


def _rows(tensor: Tensor) -> Tensor:
    """The view [N, D] of [..., D]; RuntimeError where the layout has none with contiguous rows."""
    rows = tensor.view(tensor.shape[:-1].numel(), tensor.shape[-1])
    _require(rows.stride(1) == 1 or rows.shape[1] <= 1, "the last dimension must be contiguous")
    return rows


def _check(
    x: Tensor | None, residual: Tensor, weight: Tensor | None, steering: Steering | None
) -> None:
    """All but the range of slots and delta rows, which only a synchronisation could tell."""
    device, dtype = residual.device, residual.dtype
    _require(residual.ndim >= 1 and dtype in _DTYPES, "residual must be a [..., D] of floats")
    count, width = residual.shape[:-1].numel(), residual.shape[-1]
    if x is not None:
        _require(x.shape == residual.shape and x.dtype == dtype, "x must look like residual")
        _require(x.device == device, "x must be on the stream's device")
    parts: list[tuple[str, Tensor, torch.dtype, tuple[int, ...]]] = []
    if weight is not None:
        of_dtype = torch.float32 if weight.dtype == torch.float32 else dtype
        parts.append(("weight", weight, of_dtype, (width,)))
    if steering is not None:
        row_slot, row_gain, records, bank = steering
        parts.append(("row_slot", row_slot, torch.int32, (count,)))
        parts.append(("row_gain", row_gain, torch.float32, (count,)))
        parts.append(("records", records, torch.int32, (records.shape[0], RECORD_WIDTH)))
        parts.append(("bank", bank, torch.float32, (bank.shape[0], width)))
    for name, tensor, wanted, shape in parts:
        fits = tensor.dtype == wanted and tensor.shape == shape and tensor.device == device
        _require(fits and tensor.is_contiguous(), f"{name} must be a contiguous {wanted} {shape}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)
