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
from steerfast.decoders.watch import Call, LayerRun, Seen, same_values
from steerfast.decoders.wiring import Wiring

ULPS = 4  # by which two orders of summation may move a norm


def prove(run: LayerRun, wiring: Wiring, forms: Mapping[type, NormForm], ops: Any) -> None:
    """Raises NotWired where our arithmetic is not the layer's. ops: of the backend that will run."""
    assert run.entered is not None
    assert run.left is not None
    stream, parts = run.entered.value, _parts(run.calls, wiring)
    entry = parts[0][0]
    if wiring.steps[0].before is not None and (form := forms.get(type(entry.module))) is not None:
        _check_norm(entry, _normed(entry.module, stream, form, ops))
    for number, (step, (_, back)) in enumerate(zip(wiring.steps, parts, strict=True)):
        assert back.gave is not None
        branch = back.gave.value
        if step.scale is not None:
            branch = branch * getattr(run.layer, step.scale)
        last = number + 1 == len(wiring.steps)
        reads = None if last else parts[number + 1][0]
        following = reads if not last and wiring.steps[number + 1].before is not None else None
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
        want = run.left if reads is None else next(iter(reads.took.values()))
        if not same_values(stream, want.value):
            raise NotWired(f"its stream behind {step.body} is not what this wiring makes")


def prove_reader(norm: nn.Module, took: Seen, forms: Mapping[type, NormForm], ops: Any) -> bool:
    """Whether the norm behind the last layer is what its form says, on the stream that it took."""
    form = forms.get(type(norm))
    if form is None:
        return False
    with torch.no_grad():
        want = type(norm).forward(norm, took.value)
    return _close(_normed(norm, took.value, form, ops), want)


def _normed(norm: nn.Module, stream: Tensor, form: NormForm, ops: Any) -> Tensor:
    """What the kernel makes of a stream that is there already."""
    weight, nothing = form.weight_of(norm, stream), torch.zeros_like(stream)
    normed: Tensor = ops.add_rms_norm(nothing, stream, weight, form.eps_of(norm), form.order)[1]
    return normed


def _parts(calls: list[Call], wiring: Wiring) -> list[tuple[Call, Call]]:
    """Of each step, what reads its stream and what gives its branch; a part may run in both."""
    found, waiting = [], list(calls)
    for step in wiring.steps:
        names = [name for name in (step.before, step.body, *step.after) if name is not None]
        ran, waiting = waiting[: len(names)], waiting[len(names) :]
        assert [call.name for call in ran] == names
        found.append((ran[0], ran[-1]))
    return found


def _check_norm(call: Call, normed: Tensor) -> None:
    assert call.gave is not None
    if not _close(normed, call.gave.value):
        raise NotWired(f"{call.name} is not the norm that its class computes elsewhere")


def _close(got: Tensor, want: Tensor) -> bool:
    """Of float32 weights beside a narrower stream the op gives float32, which rounds to what the module gives."""
    got = got.to(want.dtype)
    bound = ULPS * torch.finfo(want.dtype).eps * want.abs() + torch.finfo(want.dtype).tiny
    return bool(((got - want).abs() <= bound).all())
