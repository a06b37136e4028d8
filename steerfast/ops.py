"""The fused operators: schemas, fakes, and the public functions that dispatch to a backend.

``torch.ops.steerfast.*`` always exists: the schemas stand here, the reference implements them for
every device, and a compiled library, once loaded, takes over its own device. Inputs that require grad
go through the reference, which is differentiable; the compiled kernels are for inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steerfast import backends, reference
from steerfast.reference import RECORD_WIDTH, Steering

_STEERING = "Tensor row_slot, Tensor row_gain, Tensor records, Tensor bank"
_SCHEMAS = {
    "add_rms_norm": "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    "add_rms_norm_": "(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()",
    "steer_add_rms_norm": (
        f"(Tensor x, Tensor residual, Tensor weight, float eps, {_STEERING}) -> (Tensor, Tensor)"
    ),
    "steer_add_rms_norm_": (
        f"(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps, {_STEERING}) -> ()"
    ),
    "steer_rms_norm": (
        f"(Tensor stream, Tensor weight, float eps, {_STEERING}) -> (Tensor, Tensor)"
    ),
    "steer_add": f"(Tensor x, Tensor residual, {_STEERING}) -> Tensor",
    "steer": f"(Tensor stream, {_STEERING}) -> Tensor",
}


def _by_reference(name: str) -> Callable[..., Any]:
    """The reference under the op's flat signature: the last four tensors are the Steering."""
    function: Callable[..., Any] = getattr(reference, name)
    if not name.startswith("steer"):
        return function
    return lambda *args: function(*args[:-4], Steering(*args[-4:]))


def _fake(name: str) -> Callable[..., Any]:
    """Shapes and dtypes of the results. Real and meta tensors in one call land here too, so it checks."""
    has_x, has_norm, steers = "add" in name, "norm" in name, name.startswith("steer")

    def fake(*args: Any) -> Any:
        given = list(args)
        x = given.pop(0) if has_x else None
        stream = given.pop(0)
        weight = given.pop(0) if has_norm else None
        steering = Steering(*args[-4:]) if steers else None
        in_place = name.endswith("_")
        _explain(name, stream, x=x, weight=weight, steering=steering, in_place=in_place)
        if in_place:
            return None
        like = stream.new_empty(stream.shape)
        return (
            like if weight is None else (like, stream.new_empty(stream.shape, dtype=weight.dtype))
        )

    return fake


# The library object owns the registrations, so it lives as long as the module.
_library: Any = torch.library.Library("steerfast", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _by_reference(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"steerfast::{_name}", _fake(_name), lib=_library)
backends.load()

_add_rms_norm = torch.ops.steerfast.add_rms_norm.default
_add_rms_norm_inplace = torch.ops.steerfast.add_rms_norm_.default
_steer_add_rms_norm = torch.ops.steerfast.steer_add_rms_norm.default
_steer_add_rms_norm_inplace = torch.ops.steerfast.steer_add_rms_norm_.default
_steer_rms_norm = torch.ops.steerfast.steer_rms_norm.default
_steer_add = torch.ops.steerfast.steer_add.default
_steer = torch.ops.steerfast.steer.default


def needs_grad(*tensors: Tensor) -> bool:
    """A gradient, or a forward-mode derivative (which no flag of the tensors shows), is wanted."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Residual add and RMSNorm in one pass, in the rounding order of transformers' Llama.

        stream = round_T(residual + x)
        normed = round(weight * round_T(stream * rsqrt(mean(stream^2) + eps)))     # inside: float32

    x, residual: [..., D], the same dtype T (float32 | bfloat16 | float16), any row stride. weight:
    [D], dtype T or float32 (normed is then float32, as in transformers). Returns (stream, normed),
    both contiguous. Equivalent to ``s = residual + x; return s, LlamaRMSNorm(s)``; stream bitwise so.
    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    if needs_grad(x, residual, weight):
        return reference.add_rms_norm(x, residual, weight, eps)
    try:
        result: tuple[Tensor, Tensor] = _add_rms_norm(x, residual, weight, eps)
    except RuntimeError:
        _explain("add_rms_norm", residual, x=x, weight=weight)
        raise
    return result


def steer_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Steering
) -> tuple[Tensor, Tensor]:
    """Residual add, steering and RMSNorm in one pass.

        h      = round_T(residual + x)
        y      = h + gain[n] * bank[records[row_slot[n]].delta]          # float32; D values each
        stream = round_T(finish(y))          # finish: none | |h|/|y| | min(1, |h|/|y|)
        normed = round(weight * round_T(stream * rsqrt(mean(stream^2) + eps)))

    Rows in slot -1, with gain 0, or whose slot has no active term here keep ``stream = h``, the very
    bits. Arguments as in ``add_rms_norm``; ``steering``: see ``reference.Steering``, N = all rows of x.
    Returns (stream, normed). Raises ValueError for arguments that do not fit.
    """
    if needs_grad(x, residual, weight):
        return reference.steer_add_rms_norm(x, residual, weight, eps, steering)
    try:
        result: tuple[Tensor, Tensor] = _steer_add_rms_norm(x, residual, weight, eps, *steering)
    except RuntimeError:
        _explain("steer_add_rms_norm", residual, x=x, weight=weight, steering=steering)
        raise
    return result


def steer_rms_norm(
    stream: Tensor, weight: Tensor, eps: float, steering: Steering
) -> tuple[Tensor, Tensor]:
    """Steering and RMSNorm of a stream that is already formed (``resid_pre`` of layer 0).

    As ``steer_add_rms_norm`` with h = stream. Returns (steered stream, normed), never the input itself.
    """
    if needs_grad(stream, weight):
        return reference.steer_rms_norm(stream, weight, eps, steering)
    try:
        result: tuple[Tensor, Tensor] = _steer_rms_norm(stream, weight, eps, *steering)
    except RuntimeError:
        _explain("steer_rms_norm", stream, weight=weight, steering=steering)
        raise
    return result


def steer_add(x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
    """Residual add and steering, no norm: the stream of ``steer_add_rms_norm``, [..., D]."""
    if needs_grad(x, residual):
        return reference.steer_add(x, residual, steering)
    try:
        result: Tensor = _steer_add(x, residual, *steering)
    except RuntimeError:
        _explain("steer_add", residual, x=x, steering=steering)
        raise
    return result


def steer(stream: Tensor, steering: Steering) -> Tensor:
    """Steering alone: ``round_T(finish(stream + gain * delta))``, [..., D]; a new tensor."""
    if needs_grad(stream):
        return reference.steer(stream, steering)
    try:
        result: Tensor = _steer(stream, *steering)
    except RuntimeError:
        _explain("steer", stream, steering=steering)
        raise
    return result


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    """``add_rms_norm`` in place, the convention of serving engines: residual <- stream, x <- normed.

    weight must have the dtype of x. Not differentiable: ValueError if an input requires grad.
    """
    _refuse_grad("add_rms_norm_", x, residual, weight)
    try:
        _add_rms_norm_inplace(x, residual, weight, eps)
    except RuntimeError:
        _explain("add_rms_norm_", residual, x=x, weight=weight, in_place=True)
        raise


def steer_add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, steering: Steering
) -> None:
    """``steer_add_rms_norm`` in place: residual <- stream, x <- normed.

    weight must have the dtype of x. Not differentiable: ValueError if an input requires grad.
    """
    _refuse_grad("steer_add_rms_norm_", x, residual, weight)
    try:
        _steer_add_rms_norm_inplace(x, residual, weight, eps, *steering)
    except RuntimeError:
        _explain(
            "steer_add_rms_norm_", residual, x=x, weight=weight, steering=steering, in_place=True
        )
        raise


def _refuse_grad(op: str, *tensors: Tensor) -> None:
    if needs_grad(*tensors):
        raise ValueError(
            f"{op}: an input requires grad, which an in-place op would lose; use {op[:-1]} or torch.no_grad()"
        )


def _explain(
    op: str,
    residual: Tensor,
    *,
    x: Tensor | None = None,
    weight: Tensor | None = None,
    steering: Steering | None = None,
    in_place: bool = False,
) -> None:
    """Raises ValueError for the first argument that does not fit; called after a kernel refused."""
    stream = "residual" if x is not None else "stream"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    if residual.ndim < 1 or residual.dtype not in dtypes:
        raise ValueError(
            f"{op}: {stream} is {residual.dtype} {list(residual.shape)}; wanted float32, bfloat16 or "
            "float16 of shape [..., D]"
        )
    if x is not None and (x.shape != residual.shape or x.dtype != residual.dtype):
        raise ValueError(
            f"{op}: x is {x.dtype} {list(x.shape)} but residual is {residual.dtype} "
            f"{list(residual.shape)}; both must be [..., D] of one dtype"
        )
    width, count = residual.shape[-1], math.prod(residual.shape[:-1])
    if weight is not None and (
        weight.shape != (width,) or weight.dtype not in ((residual.dtype, torch.float32))
    ):
        raise ValueError(
            f"{op}: weight is {weight.dtype} {list(weight.shape)}; wanted [{width}] of {residual.dtype} "
            "or float32"
        )
    if in_place and weight is not None and weight.dtype != residual.dtype:
        raise ValueError(
            f"{op}: weight is {weight.dtype}, but in place it must be {residual.dtype}"
        )
    others = {"x": x, "weight": weight}
    if steering is not None:
        others |= steering._asdict()
        wanted = {
            "row_slot": (torch.int32, [count]),
            "row_gain": (torch.float32, [count]),
            "records": (torch.int32, [steering.records.shape[0], RECORD_WIDTH]),
            "bank": (torch.float32, [steering.bank.shape[0], width]),
        }
        for name, (dtype, shape) in wanted.items():
            given: Tensor = others[name]  # type: ignore[assignment]
            if given.dtype != dtype or list(given.shape) != shape:
                raise ValueError(
                    f"{op}: {name} is {given.dtype} {list(given.shape)}; wanted {dtype} {shape} for "
                    f"{count} rows of width {width}"
                )
    for name, tensor in others.items():
        if tensor is not None and tensor.device != residual.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {stream} is on {residual.device}; move it there"
            )
