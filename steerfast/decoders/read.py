"""A layer's wiring, read off from a run of it: which part took which stream, and what came of it."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

from steerfast.decoders.watch import Call, LayerRun, Seen, same_values
from steerfast.decoders.wiring import Constant, Step, Wiring


class NotWired(Exception):
    """Why a layer's parts do not make up what it does, in words that go on after ``because``."""


class Arguments(NamedTuple):
    """A layer's arguments: own, by name, with defaults; rest, those that it does not name."""

    own: dict[str, Any]
    rest: dict[str, Any]


def arguments_of(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """As the layer's forward has them; the stream, which comes first, is left out."""
    signature = inspect.signature(type(layer).forward)
    bound = signature.bind(layer, *args, **kwargs)
    bound.apply_defaults()
    named = list(bound.arguments.items())[1:]
    own, rest = {}, {}
    for name, value in named:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            rest.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            if value:
                raise NotWired(f"it was given {len(value)} arguments without a name")
        else:
            own[name] = value
    own.pop(next(iter(own)))
    return Arguments(own, rest)


def wiring_of(run: LayerRun) -> Wiring:
    """The wiring that explains a run, to the bit; raises NotWired with what does not fit."""
    stream, given = run.entered, arguments_of(run.layer, run.args, run.kwargs)
    if stream is None or run.left is None:
        raise NotWired("it does not take a stream and give one")
    if isinstance(run.output, (tuple, list)) and len(run.output) != 1:
        raise NotWired(f"it returns {len(run.output)} things")
    calls, steps, factor = list(run.calls), [], None
    while calls:
        before = _norm_of(calls, stream)
        reads = stream if before is None else before.gave
        body = calls.pop(0)
        at = body.took_at(reads)
        if at is None:
            raise NotWired(f"{body.name} does not read what comes before it")
        branch, after = body.gave, []
        while calls and calls[0].took_at(branch) is not None and _is_plain(calls[0]):
            back = calls.pop(0)
            after.append(back.name)
            branch = back.gave
        if branch is None or branch.tensor.shape != stream.tensor.shape:
            raise NotWired(f"{body.name} does not return a stream")
        following = run.left if not calls else next(iter(calls[0].took.values()), None)
        if following is None:
            raise NotWired(f"{calls[0].name} takes no stream")
        scale, factor = _sum(run.layer, stream.value, branch.value, following, last=not calls)
        steps.append(_step(before, body, at, tuple(after), scale, given))
        stream = following
    if not 1 <= len(steps) <= 2:
        raise NotWired(f"it has {len(steps)} residual steps")
    return Wiring(tuple(steps), factor, isinstance(run.output, (tuple, list)))


def untried(wiring: Wiring, runs: list[LayerRun]) -> tuple[str, ...]:
    """The layer's arguments that it got in none of these runs, and that no body takes: with one it may do something else."""
    each = [arguments_of(run.layer, run.args, run.kwargs).own for run in runs]
    taken = {source for step in wiring.steps for _, source in step.arguments}
    return tuple(
        name
        for name in each[0]
        if name not in taken and all(own[name] is None or own[name] is False for own in each)
    )


def _is_plain(call: Call) -> bool:
    """A norm, dropout and the like: one thing in, one out."""
    return call.alone and isinstance(call.output, Tensor)


def _norm_of(calls: list[Call], stream: Seen) -> Call | None:
    """The norm in front of a branch, taken off the list: it reads the stream, has no parts, and what follows reads it."""
    first = calls[0]
    if len(calls) < 2 or not _is_plain(first) or first.took_at(stream) is None:
        return None
    if len(list(first.module.children())) and "norm" not in first.name:
        return None
    if calls[1].took_at(first.gave) is None:
        return None
    return calls.pop(0)


def _sum(
    layer: nn.Module, stream: Tensor, branch: Tensor, following: Seen, *, last: bool
) -> tuple[str | None, str | None]:
    """(scale, factor) by which the stream that follows is what the branch was added to."""
    if same_values(stream + branch, following.value):
        return None, None
    for scale, number in _numbers(layer):
        if same_values(stream + branch * number, following.value):
            return scale, None
        if last and same_values((stream + branch) * number, following.value):
            return None, scale
    raise NotWired("what follows a branch is not the sum of it and the stream")


def _numbers(layer: nn.Module) -> list[tuple[str, Any]]:
    """Attributes of a layer that may multiply something: numbers, and tensors of one."""
    found: list[tuple[str, Any]] = [
        (name, value) for name, value in vars(layer).items() if isinstance(value, float)
    ]
    for held in (layer._parameters, layer._buffers):
        found += [(n, v) for n, v in held.items() if isinstance(v, Tensor) and v.numel() == 1]
    return found


def _step(
    before: Call | None,
    body: Call,
    at: int | str,
    after: tuple[str, ...],
    scale: str | None,
    given: Arguments,
) -> Step:
    keywords = keywords_of(body, at)
    arguments: list[tuple[str, str]] = []
    constants: list[tuple[str, Constant]] = []
    rest = False
    for name, value in keywords.items():
        if name in given.rest and given.rest[name] is value:
            rest = True
        elif (source := _source(name, value, given.own)) is not None:
            arguments.append((name, source))
        elif value is None or isinstance(value, (bool, str)):
            constants.append((name, value))
        else:
            raise NotWired(
                f"{body.name} is given {name}={type(value).__name__}, which the layer makes"
            )
    return Step(
        None if before is None else before.name,
        body.name,
        after,
        scale,
        at if isinstance(at, str) else None,
        tuple(arguments),
        tuple(constants),
        rest,
    )


def keywords_of(body: Call, at: int | str) -> dict[str, Any]:
    """What the body is given beside the stream, by its own names."""
    if isinstance(at, str) and not body.args:
        return {name: value for name, value in body.kwargs.items() if name != at}
    if at != 0:
        raise NotWired(f"{body.name} does not take its stream first")
    kwargs = dict(body.kwargs)
    if len(body.args) > 1:
        names = list(inspect.signature(type(body.module).forward).parameters)[1:]
        if len(names) < len(body.args):
            raise NotWired(f"{body.name} does not name its arguments")
        kwargs.update(zip(names[1:], body.args[1:], strict=False))
    return kwargs


def _source(name: str, value: Any, own: dict[str, Any]) -> str | None:
    """The layer's argument that a body is given: the very object; of what is no object, by its name."""
    if name in own and own[name] is value:
        return name
    if value is None or isinstance(value, (bool, int, float, str)):
        return None
    return next((source for source, mine in own.items() if mine is value), None)
