"""The proof that a wiring is a layer's: the ops that would stand in for it, on what the layer itself computed.

By induction over a run of the model: a step's norm, body and arguments are the layer's own, so what is left to show is that
the op makes the same stream of them, bit for bit, and the norm that follows, within its rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerfast.decoders.norms import NormForm
from steerfast.decoders.read import Arguments, NotWired, arguments_of, keywords_of
from steerfast.decoders.watch import Call, LayerRun, Seen, same_values
from steerfast.decoders.wiring import Step, Wiring

ULPS = 4  # by which two orders of summation may move a norm


def prove(run: LayerRun, wiring: Wiring, forms: Mapping[type, NormForm], ops: Any) -> None:
    """Raises NotWired where our arithmetic is not the layer's. ops: of the backend that will run."""
    assert run.entered is not None
    assert run.left is not None
    stream, parts = run.entered.value, _parts(run.calls, wiring)
    given = arguments_of(run.layer, run.args, run.kwargs)
    for step, part in zip(wiring.steps, parts, strict=True):
        _check_arguments(part.body, step, given)
    entry = parts[0].reads
    if wiring.steps[0].before is not None:
        form = _kernel_form(entry.module, stream, forms)
        if form is not None:
            _check_norm(entry, _normed(entry.module, stream, form, ops))
    for number, (step, part) in enumerate(zip(wiring.steps, parts, strict=True)):
        if part.back.gave is None:
            raise NotWired(f"{part.back.name} gives no stream")
        branch = part.back.gave.value
        if step.scale is not None:
            branch = branch * getattr(run.layer, step.scale)
        last = number + 1 == len(wiring.steps)
        reads = None if last else parts[number + 1].reads
        following = reads if not last and wiring.steps[number + 1].before is not None else None
        form = None if following is None else _kernel_form(following.module, stream, forms)
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
    form = _kernel_form(norm, took.value, forms)
    if form is None:
        return False
    with torch.no_grad():
        want = type(norm).forward(norm, took.value)
    return _close(_normed(norm, took.value, form, ops), want)


def _kernel_form(
    norm: nn.Module, stream: Tensor, forms: Mapping[type, NormForm]
) -> NormForm | None:
    """The form of a norm that kernels know; None too where its weight is narrower than the stream: the module itself then runs."""
    form = forms.get(type(norm))
    if form is None or form.weight_of(norm, stream).dtype not in (stream.dtype, torch.float32):
        return None
    return form


def _normed(norm: nn.Module, stream: Tensor, form: NormForm, ops: Any) -> Tensor:
    """What the kernel makes of a stream that is there already."""
    weight, nothing = form.weight_of(norm, stream), torch.zeros_like(stream)
    normed: Tensor = ops.add_rms_norm(nothing, stream, weight, form.eps_of(norm), form.order)[1]
    return normed


class _Ran(NamedTuple):
    """The parts of a step as they ran: what reads the stream, what mixes or feeds forward, what gives the branch."""

    reads: Call
    body: Call
    back: Call


def _parts(calls: list[Call], wiring: Wiring) -> list[_Ran]:
    """Of each step; a part may run in both."""
    found, waiting = [], list(calls)
    for step in wiring.steps:
        names = [name for name in (step.before, step.body, *step.after) if name is not None]
        ran, waiting = waiting[: len(names)], waiting[len(names) :]
        if [call.name for call in ran] != names:
            raise NotWired(f"its parts do not run as {', '.join(names)}")
        found.append(_Ran(ran[0], ran[0 if step.before is None else 1], ran[-1]))
    if waiting:
        raise NotWired(f"{waiting[0].name} runs too")
    return found


def _check_arguments(body: Call, step: Step, given: Arguments) -> None:
    """The body was given just what it will be given."""
    got = keywords_of(body, 0 if step.stream is None else step.stream)
    want = {name: given.own.get(source) for name, source in step.arguments}
    want.update(step.constants)
    if step.rest:
        want.update(given.rest)
    if got.keys() != want.keys() or any(
        got[name] is not want[name] and not _equal(got[name], want[name]) for name in got
    ):
        raise NotWired(f"{step.body} is given other arguments than this wiring gives it")


def _equal(got: Any, want: Any) -> bool:
    """Of what is no object of its own."""
    return isinstance(got, (bool, int, float, str)) and type(got) is type(want) and got == want


def _check_norm(call: Call, normed: Tensor) -> None:
    assert call.gave is not None
    if not _close(normed, call.gave.value):
        raise NotWired(f"{call.name} is not the norm that its class computes elsewhere")


def _close(got: Tensor, want: Tensor) -> bool:
    """Of float32 weights beside a narrower stream the op gives float32, which rounds to what the module gives."""
    got = got.to(want.dtype)
    bound = ULPS * torch.finfo(want.dtype).eps * want.abs() + torch.finfo(want.dtype).tiny
    return bool(((got - want).abs() <= bound).all())
