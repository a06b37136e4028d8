"""A layer's own forward on numbers that say everything, with its parts stood in for: what does the layer itself do?

What a model computes may hide it: a factor may be one, a branch nothing, a dropout off, until a checkpoint is loaded or
training begins. So the layer is run again, in a moment, on random streams, its parts give random branches, and whatever
number it has is another.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.read import NotWired, wiring_of
from steerfast.decoders.stood_in import stood_in_for
from steerfast.decoders.watch import Call, LayerRun, same_values, seen, took
from steerfast.decoders.wiring import Wiring

_PROBE = "steerfast_probe"


class _Played:
    """Stands in for the parts of a layer. calls: as they come, with what is given instead. heard: the parts that were given
    the probe."""

    def __init__(self, calls: list[Call]) -> None:
        self.waiting, self.calls, self.heard = list(calls), list[Call](), set[str]()
        self.thread = threading.get_ident()
        self.random = torch.Generator().manual_seed(0)

    def drawn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.random).to(like)

    def forward_of(self, part: Any) -> Any:
        original = part.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(*args, **kwargs)
            if not self.waiting or self.waiting[0].module is not part:
                raise NotWired("its parts run in another order when it is run again")
            before = self.waiting.pop(0)
            if kwargs.pop(_PROBE, None) is not None:
                self.heard.add(before.name)
            call = Call(before.name, part, args, kwargs, took(args, kwargs))
            call.output = self._instead(before)
            call.gave = seen(call.output)
            self.calls.append(call)
            return call.output

        return forward

    def _instead(self, call: Call) -> Any:
        """What the part gave, with another stream."""
        if call.gave is None:
            return call.output
        stream = self.drawn(call.gave.value)
        if isinstance(call.output, Tensor):
            return stream
        return type(call.output)((stream, *call.output[1:]))


@contextmanager
def _other_numbers(layer: nn.Module, *, training: bool) -> Iterator[None]:
    """Every number of the layer's own, and every tensor of one, is another; and it is in training, or not."""
    plain = {name: value for name, value in vars(layer).items() if isinstance(value, float)}
    held_in: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
    tensors = [
        (held, name, value)
        for held in held_in
        for name, value in held.items()
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    ]
    flags = {name: layer.__dict__.get(name) for name in ("training", "gradient_checkpointing")}
    others = (0.3 + 0.0625 * number % 0.6 for number in range(len(plain) + len(tensors)))
    try:
        layer.__dict__.update({name: next(others) for name in plain})
        for held, name, value in tensors:
            other = torch.full_like(value, next(others))
            held[name] = nn.Parameter(other) if isinstance(value, nn.Parameter) else other
        layer.__dict__.update(training=training, gradient_checkpointing=False)
        devices = {p.device for p in layer.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        layer.__dict__.update(plain)
        for held, name, value in tensors:
            held[name] = value
        for name, flag in flags.items():
            layer.__dict__.pop(name, None)
            if flag is not None:
                layer.__dict__[name] = flag


def read_off(run: LayerRun) -> Wiring:
    """The wiring of a layer that has run, by what it does to other streams, branches and numbers.

    Raises NotWired if it has none, does something of its own in training, or cannot be run again.
    """
    layer = run.layer
    forward = inspect.unwrap(type(layer).forward)
    parameters = inspect.signature(forward).parameters.values()
    probing = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    with _other_numbers(layer, training=False):
        tried, _ = _again(run, forward, probing=False)
        wiring = wiring_of(tried)
    with _other_numbers(layer, training=True):
        trained, heard = _again(run, forward, probing=probing)
    assert tried.left is not None
    assert trained.left is not None
    if not same_values(trained.left.value, tried.left.value):
        raise NotWired("it does something else in training")
    if not probing:
        return wiring
    steps = tuple(replace(step, rest=step.body in heard) for step in wiring.steps)
    return replace(wiring, steps=steps)


def _again(run: LayerRun, forward: Any, *, probing: bool) -> tuple[LayerRun, set[str]]:
    """(a run of the layer on a drawn stream, parts that were handed the keyword that nobody names)."""
    if run.entered is None:
        raise NotWired("it does not take a stream and give one")
    played = _Played(run.calls)
    stream, before = played.drawn(run.entered.value), run.entered.tensor
    args = tuple(stream if value is before else value for value in run.args)
    kwargs = {name: stream if value is before else value for name, value in run.kwargs.items()}
    again = LayerRun(run.layer, args, dict(kwargs), seen(stream), played.calls)
    if probing:
        kwargs[_PROBE] = object()
    parts = dict.fromkeys(call.module for call in run.calls)
    with stood_in_for([(part, played.forward_of(part)) for part in parts]):
        try:
            again.output = forward(run.layer, *args, **kwargs)
        except NotWired:
            raise
        except Exception as error:
            raise NotWired(
                f"it cannot be run again by itself ({type(error).__name__}: {error})"
            ) from error
    again.left = seen(again.output)
    if again.left is None:
        raise NotWired("it does not take a stream and give one")
    return again, played.heard
