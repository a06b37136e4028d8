"""A layer's own forward once more, with its parts stood in for by what they gave: what else does it do?"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.read import NotWired
from steerfast.decoders.watch import Call, LayerRun, same_values
from steerfast.decoders.wiring import Wiring, branch_of

_PROBE = "steerfast_probe"


class _Played:
    """Stands in for the parts of a layer. heard: the parts that were given the probe."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls, self.heard = list(calls), set[str]()
        self.thread = threading.get_ident()

    def forward_of(self, part: Any) -> Any:
        original = part.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(*args, **kwargs)
            if not self.calls or self.calls[0].module is not part:
                raise NotWired("its parts run in another order when it is run again")
            call = self.calls.pop(0)
            if _PROBE in kwargs:
                self.heard.add(call.name)
            return _again(call)

        return forward


def _again(call: Call) -> Any:
    """What the part gave; its stream as it was then."""
    if call.gave is None:
        return call.output
    stream = call.gave.value.clone()
    if isinstance(call.output, Tensor):
        return stream
    return type(call.output)((stream, *call.output[1:]))


@contextmanager
def _stood_in_for(run: LayerRun, *, training: bool) -> Iterator[_Played]:
    played, layer = _Played(run.calls), run.layer
    parts = list(dict.fromkeys(call.module for call in run.calls))
    kept = [(part, part.__dict__.get("forward")) for part in parts]
    flags = {name: layer.__dict__.get(name) for name in ("training", "gradient_checkpointing")}
    try:
        for part in parts:
            part.__dict__["forward"] = played.forward_of(part)
        layer.__dict__.update(training=training, gradient_checkpointing=False)
        devices = {p.device for p in layer.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            yield played
    finally:
        for part, forward in kept:
            part.__dict__.pop("forward")
            if forward is not None:
                part.__dict__["forward"] = forward
        for name, value in flags.items():
            layer.__dict__.pop(name, None)
            if value is not None:
                layer.__dict__[name] = value


def completed(run: LayerRun, wiring: Wiring) -> Wiring:
    """The wiring, and to which bodies the layer hands on keywords that it does not name.

    Raises NotWired if the layer does something of its own in training, which a run in eval mode does not show, or cannot be
    run again.
    """
    layer, kwargs = run.layer, dict(run.kwargs)
    forward = inspect.unwrap(type(layer).forward)
    parameters = inspect.signature(forward).parameters.values()
    probing = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    if probing:
        kwargs[_PROBE] = object()
    with _stood_in_for(run, training=True) as played:
        try:
            output = branch_of(forward(layer, *run.args, **kwargs))
        except NotWired:
            raise
        except Exception as error:
            raise NotWired(
                f"it cannot be run again by itself ({type(error).__name__}: {error})"
            ) from error
    assert run.left is not None
    if not same_values(output, run.left.value):
        raise NotWired("it does something else in training")
    steps = tuple(
        replace(step, rest=step.body in played.heard) if probing else step for step in wiring.steps
    )
    return replace(wiring, steps=steps)
