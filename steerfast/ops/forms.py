"""The forms of the op: what each takes and gives, and how one step with optional parts has them all.

    h = residual + x        stream = h, steered        normed = RMSNorm(stream)

A form leaves some of it out, or writes in place. Here its arguments are flat, as ``torch.ops.steerfast.*`` takes
them; with their meaning they stand in ``steerfast.ops.interface``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from steerfast.ops.records import Steering

NormOrder = Literal["hf", "fp32"]

_NORM = "Tensor weight, float eps, bool fp32_norm"
_STEERING = "Tensor row_slot, Tensor row_gain, Tensor records, Tensor reads, Tensor bank"
SCHEMAS = {
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
_HAS = {  # adds a branch, norms, steers
    op: (" x," in schema, _NORM in schema, _STEERING in schema) for op, schema in SCHEMAS.items()
}


class Parts(NamedTuple):
    """The arguments of one call of a form. ``residual`` is the stream itself where there is no x.

    x, weight, steering: None where the form adds nothing, has no norm, or does not steer.
    """

    op: str
    residual: Tensor
    x: Tensor | None = None
    weight: Tensor | None = None
    eps: float = 0.0
    fp32_norm: bool = False
    steering: Steering | None = None

    @property
    def in_place(self) -> bool:
        return self.op.endswith("_")


def parts_of(op: str, arguments: Sequence[Any]) -> Parts:
    """The flat arguments of a form, taken apart."""
    adds, norms, steers = _HAS[op]
    x, residual = arguments[:2] if adds else (None, arguments[0])
    weight, eps, fp32_norm = arguments[1 + adds : 4 + adds] if norms else (None, 0.0, False)
    steering = Steering(*arguments[-len(Steering._fields) :]) if steers else None
    return Parts(op, residual, x, weight, eps, fp32_norm, steering)


Flat = dict[str, Callable[..., Any]]  # every form's name -> a callable as its schema says
Step = Callable[[Parts], tuple[Tensor, Tensor | None]]
Write = Callable[[Parts], None]


def flat(step: Step, write: Write, write_halves: Write) -> Flat:
    """All forms of an implementation.

    step: gives the stream and, where there is a weight, its norm, as new tensors. write: leaves the stream in
    residual and the norm in x. write_halves: is ``steer_halves_``.
    """

    def form(op: str) -> Callable[..., Any]:
        into = write_halves if op == "steer_halves_" else write

        def call(*arguments: Any) -> Any:
            parts = parts_of(op, arguments)
            if parts.in_place:
                return into(parts)
            stream, normed = step(parts)
            return stream if normed is None else (stream, normed)

        return call

    return {op: form(op) for op in SCHEMAS}
