"""The fused operators: schemas, fakes, and the public functions that dispatch to a backend.

``torch.ops.steerfast.*`` always exists: the schemas stand here, the reference implements them for
every device, and a compiled library, once loaded, takes over its own device. Inputs that require grad
go through the reference, which is differentiable; the compiled kernels are for inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steerfast.ops import backends, reference
from steerfast.ops.arguments import explain, norm_order_flag, validate
from steerfast.ops.reference import NormOrder, Steering

_NORM = "Tensor weight, float eps, bool fp32_norm"
_STEERING = "Tensor row_slot, Tensor row_gain, Tensor records, Tensor reads, Tensor bank"
_SCHEMAS = {
    "add_rms_norm": f"(Tensor x, Tensor residual, {_NORM}) -> (Tensor, Tensor)",
    "add_rms_norm_": f"(Tensor(a!) x, Tensor(b!) residual, {_NORM}) -> ()",
    "steer_add_rms_norm": f"(Tensor x, Tensor residual, {_NORM}, {_STEERING}) -> (Tensor, Tensor)",
    "steer_add_rms_norm_": f"(Tensor(a!) x, Tensor(b!) residual, {_NORM}, {_STEERING}) -> ()",
    "steer_rms_norm": f"(Tensor stream, {_NORM}, {_STEERING}) -> (Tensor, Tensor)",
    "steer_add": f"(Tensor x, Tensor residual, {_STEERING}) -> Tensor",
    "steer": f"(Tensor stream, {_STEERING}) -> Tensor",
    "steer_": f"(Tensor(a!) stream, {_STEERING}) -> ()",
    "steer_halves_": f"(Tensor(a!) x, Tensor(b!) residual, {_STEERING}) -> ()",
}


def _parts(name: str, args: tuple[Any, ...]) -> tuple[list[Tensor], list[Any], list[Steering]]:
    """A flat argument list as its parts: [x, residual] or [stream]; [weight, eps, fp32_norm]; [Steering]."""
    streams = 2 if "add" in name or "halves" in name else 1
    steering = [Steering(*args[-5:])] if name.startswith("steer") else []
    norm = list(args[streams : streams + 3]) if "norm" in name else []
    return list(args[:streams]), norm, steering


def _by_reference(name: str) -> Callable[..., Any]:
    """The reference under the op's flat signature."""
    function: Callable[..., Any] = getattr(reference, name)

    def implementation(*args: Any) -> Any:
        streams, norm, steering = _parts(name, args)
        if not norm:
            return function(*streams, *steering)
        weight, eps, fp32_norm = norm
        return function(*streams, weight, eps, *steering, "fp32" if fp32_norm else "hf")

    return implementation


def _fake(name: str) -> Callable[..., Any]:
    """Shapes and dtypes of the results. Real and meta tensors in one call land here too, so it checks."""

    def fake(*args: Any) -> Any:
        streams, norm, steering = _parts(name, args)
        stream = streams[-1]
        x = streams[0] if len(streams) == 2 else None
        weight = norm[0] if norm else None
        in_place = name.endswith("_")
        explain(
            name,
            stream,
            x=x,
            weight=weight,
            steering=steering[0] if steering else None,
            in_place=in_place,
        )
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
_steer_inplace = torch.ops.steerfast.steer_.default
_steer_halves_inplace = torch.ops.steerfast.steer_halves_.default


def needs_grad(*tensors: Tensor) -> bool:
    """A gradient, or a forward-mode derivative (which no flag of the tensors shows), is wanted."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    """Residual add and RMSNorm in one pass.

        stream = round_T(residual + x)
        normed = round(weight * round_T(stream * rsqrt(mean(stream^2) + eps)))     # "hf": transformers' Llama
        normed = round(weight * (stream * rsqrt(mean(stream^2) + eps)))            # "fp32": vLLM's kernel

    x, residual: [..., D], the same dtype T (float32 | bfloat16 | float16), any row stride. weight:
    [D], dtype T or float32 (normed is then float32, as in transformers). Inside, all is float32.
    Returns (stream, normed), both contiguous. Equivalent to ``s = residual + x; return s,
    LlamaRMSNorm(s)``; stream bitwise so. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    if needs_grad(x, residual, weight):
        return reference.add_rms_norm(x, residual, weight, eps, norm_order)
    fp32 = norm_order != "hf" and norm_order_flag("add_rms_norm", norm_order)
    try:
        result: tuple[Tensor, Tensor] = _add_rms_norm(x, residual, weight, eps, fp32)
    except RuntimeError:
        explain("add_rms_norm", residual, x=x, weight=weight)
        raise
    return result


def steer_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> tuple[Tensor, Tensor]:
    """Residual add, steering and RMSNorm in one pass.

        h      = round_T(residual + x)
        y      = h + gain[n] * (delta + sum_i gate_i * u_i(h))      # float32; of the record of row_slot[n]
        stream = round_T(finish(y))          # finish: none | |h|/|y| | min(1, |h|/|y|)
        normed = as in ``add_rms_norm``

    delta: a row of the bank, everything constant in one; u_i: up to 16 reading terms (projections,
    clamps, rotations, ...; formulas in ``steerfast.ops.records``). All of them read the same h and add up.
    Rows in slot -1, with gain 0, or whose slot has nothing here keep ``stream = h``, the very
    bits. Arguments as in ``add_rms_norm``; ``steering``: see ``reference.Steering``, N = all rows of x.
    Returns (stream, normed). Raises ValueError for arguments that do not fit.
    """
    if needs_grad(x, residual, weight):
        return reference.steer_add_rms_norm(x, residual, weight, eps, steering, norm_order)
    fp32 = norm_order != "hf" and norm_order_flag("steer_add_rms_norm", norm_order)
    try:
        result: tuple[Tensor, Tensor] = _steer_add_rms_norm(
            x, residual, weight, eps, fp32, *steering
        )
    except RuntimeError as error:
        explain("steer_add_rms_norm", residual, x=x, weight=weight, steering=steering)
        _explain_values(steering, error)
        raise
    return result


def steer_rms_norm(
    stream: Tensor, weight: Tensor, eps: float, steering: Steering, norm_order: NormOrder = "hf"
) -> tuple[Tensor, Tensor]:
    """Steering and RMSNorm of a stream that is already formed (``resid_pre`` of layer 0).

    As ``steer_add_rms_norm`` with h = stream. Returns (steered stream, normed), never the input itself.
    """
    if needs_grad(stream, weight):
        return reference.steer_rms_norm(stream, weight, eps, steering, norm_order)
    fp32 = norm_order != "hf" and norm_order_flag("steer_rms_norm", norm_order)
    try:
        result: tuple[Tensor, Tensor] = _steer_rms_norm(stream, weight, eps, fp32, *steering)
    except RuntimeError as error:
        explain("steer_rms_norm", stream, weight=weight, steering=steering)
        _explain_values(steering, error)
        raise
    return result


def steer_add(x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
    """Residual add and steering, no norm: the stream of ``steer_add_rms_norm``, [..., D]."""
    if needs_grad(x, residual):
        return reference.steer_add(x, residual, steering)
    try:
        result: Tensor = _steer_add(x, residual, *steering)
    except RuntimeError as error:
        explain("steer_add", residual, x=x, steering=steering)
        _explain_values(steering, error)
        raise
    return result


def steer(stream: Tensor, steering: Steering) -> Tensor:
    """Steering alone: the stream of ``steer_add_rms_norm`` with h = stream, [..., D]; a new tensor."""
    if needs_grad(stream):
        return reference.steer(stream, steering)
    try:
        result: Tensor = _steer(stream, *steering)
    except RuntimeError as error:
        explain("steer", stream, steering=steering)
        _explain_values(steering, error)
        raise
    return result


def add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
) -> None:
    """``add_rms_norm`` in place, the convention of serving engines: residual <- stream, x <- normed.

    weight must have the dtype of x. Not differentiable: ValueError if an input requires grad.
    """
    _refuse_grad("add_rms_norm_", x, residual, weight)
    fp32 = norm_order != "hf" and norm_order_flag("add_rms_norm_", norm_order)
    try:
        _add_rms_norm_inplace(x, residual, weight, eps, fp32)
    except RuntimeError:
        explain("add_rms_norm_", residual, x=x, weight=weight, in_place=True)
        raise


def steer_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    steering: Steering,
    norm_order: NormOrder = "hf",
) -> None:
    """``steer_add_rms_norm`` in place: residual <- stream, x <- normed.

    weight must have the dtype of x. Not differentiable: ValueError if an input requires grad.
    """
    op = "steer_add_rms_norm_"
    _refuse_grad(op, x, residual, weight)
    fp32 = norm_order != "hf" and norm_order_flag(op, norm_order)
    try:
        _steer_add_rms_norm_inplace(x, residual, weight, eps, fp32, *steering)
    except RuntimeError as error:
        explain(op, residual, x=x, weight=weight, steering=steering, in_place=True)
        _explain_values(steering, error)
        raise


def steer_(stream: Tensor, steering: Steering) -> None:
    """``steer`` in place. Not differentiable: ValueError if the stream requires grad."""
    _refuse_grad("steer_", stream)
    try:
        _steer_inplace(stream, *steering)
    except RuntimeError as error:
        explain("steer_", stream, steering=steering, in_place=True)
        _explain_values(steering, error)
        raise


def steer_halves_(x: Tensor, residual: Tensor, steering: Steering) -> None:
    """Steering of a stream that is still two halves, as serving engines hand it to their own norm.

        steered rows:  residual <- the stream of ``steer_add``,  x <- 0
        other rows:    untouched, so that what follows sees the very bits of an unsteered model

    x, residual: [..., D], one dtype. Rows that are not steered are neither read nor written. Not
    differentiable: ValueError if an input requires grad.
    """
    _refuse_grad("steer_halves_", x, residual)
    try:
        _steer_halves_inplace(x, residual, *steering)
    except RuntimeError as error:
        explain("steer_halves_", residual, x=x, steering=steering, in_place=True)
        _explain_values(steering, error)
        raise


def _explain_values(steering: Steering, error: RuntimeError) -> None:
    """Which value it was, where the CPU kernel met one that is not in the table."""
    if "not in the table" in str(error) and all(tensor.is_cpu for tensor in steering):
        validate(steering)


def _refuse_grad(op: str, *tensors: Tensor) -> None:
    if needs_grad(*tensors):
        raise ValueError(
            f"{op}: an input requires grad, which an in-place op would lose; use {op[:-1]} or torch.no_grad()"
        )
