"""The proof that a wiring is a layer's: the ops that would stand in for it, on what the layer itself computed.

By induction over a run of the model: a step's norm, body and arguments are the layer's own, so what is left to show is that
the op makes the same stream of them, bit for bit, and the norm that follows, within its rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.norms import NormForm
from steerfast.decoders.read import NotWired
from steerfast.decoders.watch import Call, LayerRun, Seen
from steerfast.decoders.wiring import Wiring

ULPS = 4  # by which two orders of summation may move a norm


def prove(run: LayerRun, wiring: Wiring, forms: Mapping[type, NormForm], ops: Any) -> None:
    """Raises NotWired where our arithmetic is not the layer's. ops: of the backend that will run."""
    by_name = {call.name: call for call in run.calls}
    assert run.entered is not None
    assert run.left is not None
    stream = run.entered.value
    for number, step in enumerate(wiring.steps):
        branch = _branch(by_name, step.body, step.after)
        if step.scale is not None:
            branch = branch * getattr(run.layer, step.scale)
        last = number + 1 == len(wiring.steps)
        following = (
            None
            if last
            else by_name[wiring.steps[number + 1].before or ""]
            if (wiring.steps[number + 1].before)
            else None
        )
        form = None if following is None else forms.get(type(following.module))
        if following is None or form is None or stream.dtype != branch.dtype:
            stream = stream + branch
        else:
            weight = form.weight_of(following.module, stream)
            eps = form.eps_of(following.module)
            stream, normed = ops.add_rms_norm(branch, stream, weight, eps, form.order)
            _check_norm(following, normed)
        if last and wiring.factor is not None:
            stream = stream * getattr(run.layer, wiring.factor)
        want = run.left if last else _entered(by_name, wiring, number + 1)
        if not torch.equal(stream, want.value):
            raise NotWired(f"its stream behind {step.body} is not what this wiring makes")


def prove_reader(norm: nn.Module, took: Seen, forms: Mapping[type, NormForm], ops: Any) -> bool:
    """Whether the norm behind the last layer is what its form says, on the stream that it took."""
    form = forms.get(type(norm))
    if form is None:
        return False
    with torch.no_grad():
        want = type(norm).forward(norm, took.value)
    got = ops.add_rms_norm(
        torch.zeros_like(took.value),
        took.value,
        form.weight_of(norm, took.value),
        form.eps_of(norm),
        form.order,
    )[1]
    return _close(got, want)


def _branch(by_name: Mapping[str, Call], body: str, after: tuple[str, ...]) -> Tensor:
    seen = by_name[after[-1] if after else body].gave
    assert seen is not None
    return seen.value


def _entered(by_name: Mapping[str, Call], wiring: Wiring, number: int) -> Seen:
    step = wiring.steps[number]
    call = by_name[step.before or step.body]
    return next(iter(call.took.values()))


def _check_norm(call: Call, normed: Tensor) -> None:
    assert call.gave is not None
    if not _close(normed, call.gave.value):
        raise NotWired(f"{call.name} is not the norm that its class computes elsewhere")


def _close(got: Tensor, want: Tensor) -> bool:
    """Of float32 weights beside a narrower stream the op gives float32, which rounds to what the module gives."""
    got = got.to(want.dtype)
    bound = ULPS * torch.finfo(want.dtype).eps * want.abs() + torch.finfo(want.dtype).tiny
    return bool(((got - want).abs() <= bound).all())
