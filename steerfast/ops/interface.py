"""The ops as a caller sees them: signatures, formulas, gradients, what is refused. Once for all implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steerfast.ops.arguments import explain, norm_order_flag, refuse_shared_memory, validate
from steerfast.ops.forms import Flat, NormOrder, parts_of
from steerfast.ops.records import Steering


class Ops:
    """The ops of one implementation.

    flat: the implementation, see ``steerfast.ops.forms``. differentiable: another one, which takes the calls in which
    a gradient is wanted; without it ``flat`` takes all calls as they come, and fails in torch's own words.
    """

    def __init__(self, flat: Flat, differentiable: Flat | None = None) -> None:
        self._flat, self._differentiable = flat, differentiable

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
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
        # No call for the usual order: in an op of a few microseconds it would show. So in all that follow.
        fp32 = norm_order != "hf" and norm_order_flag("add_rms_norm", norm_order)
        result: tuple[Tensor, Tensor] = self._call(
            "add_rms_norm", needs_grad(x, residual, weight), (x, residual, weight, eps, fp32)
        )
        return result

    def steer_add_rms_norm(
        self,
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
        bits. Arguments as in ``add_rms_norm``; ``steering``: see ``Steering``, N = all rows of x.
        Returns (stream, normed). Raises ValueError for arguments that do not fit.
        """
        fp32 = norm_order != "hf" and norm_order_flag("steer_add_rms_norm", norm_order)
        result: tuple[Tensor, Tensor] = self._call(
            "steer_add_rms_norm",
            needs_grad(x, residual, weight),
            (x, residual, weight, eps, fp32, *steering),
        )
        return result

    def steer_rms_norm(
        self,
        stream: Tensor,
        weight: Tensor,
        eps: float,
        steering: Steering,
        norm_order: NormOrder = "hf",
    ) -> tuple[Tensor, Tensor]:
        """Steering and RMSNorm of a stream that is already formed (``resid_pre`` of layer 0).

        As ``steer_add_rms_norm`` with h = stream. Returns (steered stream, normed), never the input itself.
        """
        fp32 = norm_order != "hf" and norm_order_flag("steer_rms_norm", norm_order)
        result: tuple[Tensor, Tensor] = self._call(
            "steer_rms_norm", needs_grad(stream, weight), (stream, weight, eps, fp32, *steering)
        )
        return result

    def steer_add(self, x: Tensor, residual: Tensor, steering: Steering) -> Tensor:
        """Residual add and steering, no norm: the stream of ``steer_add_rms_norm``, [..., D]."""
        result: Tensor = self._call("steer_add", needs_grad(x, residual), (x, residual, *steering))
        return result

    def steer(self, stream: Tensor, steering: Steering) -> Tensor:
        """Steering alone: the stream of ``steer_add_rms_norm`` with h = stream, [..., D]; a new tensor."""
        result: Tensor = self._call("steer", needs_grad(stream), (stream, *steering))
        return result

    def add_rms_norm_(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, norm_order: NormOrder = "hf"
    ) -> None:
        """``add_rms_norm`` in place, the convention of serving engines: residual <- stream, x <- normed.

        weight must have the dtype of x. Not differentiable: ValueError if an input requires grad.
        """
        fp32 = norm_order != "hf" and norm_order_flag("add_rms_norm_", norm_order)
        self._call(
            "add_rms_norm_", needs_grad(x, residual, weight), (x, residual, weight, eps, fp32)
        )

    def steer_add_rms_norm_(
        self,
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
        fp32 = norm_order != "hf" and norm_order_flag("steer_add_rms_norm_", norm_order)
        self._call(
            "steer_add_rms_norm_",
            needs_grad(x, residual, weight),
            (x, residual, weight, eps, fp32, *steering),
        )

    def steer_(self, stream: Tensor, steering: Steering) -> None:
        """``steer`` in place. Not differentiable: ValueError if the stream requires grad."""
        self._call("steer_", needs_grad(stream), (stream, *steering))

    def steer_halves_(self, x: Tensor, residual: Tensor, steering: Steering) -> None:
        """Steering of a stream that is still two halves, as serving engines hand it to their own norm.

            steered rows:  residual <- the stream of ``steer_add``,  x <- 0
            other rows:    untouched, so that what follows sees the very bits of an unsteered model

        x, residual: [..., D], one dtype. Rows that are not steered are neither read nor written. Not
        differentiable: ValueError if an input requires grad.
        """
        self._call("steer_halves_", needs_grad(x, residual), (x, residual, *steering))

    def _call(self, op: str, with_grad: bool, arguments: tuple[Any, ...]) -> Any:
        """By the schema's flat arguments: to the implementation, or where a gradient is wanted."""
        if with_grad and self._differentiable is not None:
            if op.endswith("_"):
                other = "steer_add" if op == "steer_halves_" else op[:-1]
                raise ValueError(
                    f"{op}: an input requires grad, which an in-place op would lose; use {other} or "
                    "torch.no_grad()"
                )
            return self._differentiable[op](*arguments)
        try:
            return self._flat[op](*arguments)
        except RuntimeError as error:
            if self._differentiable is not None:
                _explain(op, arguments, error)
            raise


def needs_grad(*tensors: Tensor) -> bool:
    """A gradient, or a forward-mode derivative (which no flag of the tensors shows), is wanted."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True
    if torch.is_grad_enabled():  # a loop: of any() the generator would cost more than all the rest
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def _explain(op: str, arguments: tuple[Any, ...], error: RuntimeError) -> None:
    """ValueError if it was for an argument; or for a value, where the CPU kernel met one outside of the table."""
    parts = parts_of(op, arguments)
    explain(parts)
    if parts.in_place:
        refuse_shared_memory(parts)
    steering = parts.steering
    if steering is None or "not in the table" not in str(error):
        return
    if all(tensor.is_cpu for tensor in steering):
        validate(steering)
