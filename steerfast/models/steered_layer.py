"""A decoder layer, patched: residual add, steering and the next norm as one kernel for each residual step, and nothing else.

The last kernel of a layer computes the norm that the next layer starts with and hands it over; where anybody could look in
between (a hook, a foreign ``forward``, a norm whose weight lives elsewhere), the layer runs un-fused and just as right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.norms import NormForm
from steerfast.decoders.wiring import Body, Wiring
from steerfast.errors import SteerfastError
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.forwards import Forwards
from steerfast.models.hand_over import KernelNorm, Ready, steered, unobserved
from steerfast.models.plain_layer import steered_output
from steerfast.models.rebind import standing_in, stands
from steerfast.ops.records import Steering
from steerfast.plans.sites import site_index, site_name

Given = Mapping[str, Any]
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What transformers leaves out under gradient checkpointing, where backward would write a second time.
_NO_CACHE = {"past_key_values": None, "layer_past": None, "use_cache": False}


class SteeredLayer:
    """The ``forward`` of one layer whose wiring is known."""

    def __init__(
        self,
        layer: Any,
        index: int,
        wiring: Wiring,
        forms: Mapping[type, NormForm],
        forwards: Forwards,
        original: Callable[..., Any],
    ) -> None:
        self.layer, self.wiring, self.forwards = layer, wiring, forwards
        self.original = original  # for what it was not proven with
        parameters = list(inspect.signature(type(layer).forward).parameters.values())[1:]
        self.stream_name = parameters[0].name
        named = [one for one in parameters[1:] if one.kind not in _ANY_NUMBER]
        self.names = tuple(one.name for one in named)  # those by keyword alone come last
        self.defaults = {one.name: one.default for one in named if one.default is not one.empty}
        self.bodies = tuple(Body(layer, step) for step in wiring.steps)
        self.hands_on = any(step.rest for step in wiring.steps)
        last = len(self.bodies) - 1
        self.sites = tuple(
            site_index("resid_post" if number == last else "resid_mid", index)
            for number in range(last + 1)
        )
        between = [step.before for step in wiring.steps[1:]]
        self.between = [None if n is None else KernelNorm.within(layer, n, forms) for n in between]
        # Set by attach, to notice whoever replaces a forward later: what stands in ``forward`` of this
        # layer, and what runs next. enters: it is the first, and steers what enters it.
        self.own_forward: Any = None
        self.next: KernelNorm | None = None
        self.enters = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's contract in transformers: a stream in, a stream out."""
        self = standing_in(self)
        stream = args[0] if args else kwargs.pop(self.stream_name)
        more = args[1:]
        given: dict[str, Any] = {**self.defaults, **kwargs}
        rest: dict[str, Any] = {}
        if more:
            given.update(zip(self.names, more, strict=False))
        if self.hands_on:
            rest = {name: value for name, value in kwargs.items() if name not in self.names}
        layer = self.layer
        now, whole = self.forwards.of_layer(stream)
        for name in self.wiring.untried:
            if given[name] is not None and given[name] is not False:
                return self._as_it_is(name, stream, more, kwargs, now)
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            stream = self._checkpointed(stream, given, rest, now)
        else:
            stream = self._run(stream, given, rest, now, now.steering, hand_over=whole)
        return (stream,) if self.wiring.in_tuple else stream

    def _as_it_is(
        self, name: str, stream: Tensor, more: Any, kwargs: Mapping[str, Any], now: ForwardPass
    ) -> Any:
        """With an argument that nothing is known of (the states of an encoder) the layer runs itself, and is steered behind."""
        for site in self.sites[:-1]:
            if now.may_steer(site):
                raise SteerfastError(
                    f"{type(self.layer).__name__} was given {name}, with which its wiring is not known, and a plan in use steers "
                    f"{site_name(site)}, inside of it; steer resid_post"
                )
        if self.enters:
            stream = self.forwards.ops.steer(stream, now.steering(0))
            now.measure(stream, 0)
        output = self.original(stream, *more, **kwargs)
        return steered_output(output, self.sites[-1], now, self.forwards.ops)

    def _checkpointed(self, stream: Tensor, given: Given, rest: Given, now: ForwardPass) -> Tensor:
        """Under gradient checkpointing the layer is one function that backward runs a second time: no
        cache, as in transformers, no hand-over, and steering by value."""
        if _checkpoints_in_call(self.layer):
            raise SteerfastError(
                "gradient checkpointing of a patched model needs transformers >= 5.23: before, the "
                "recomputation in backward would read the plans in force then, not those of the forward"
            )
        given = {**given, **{n: v for n, v in _NO_CACHE.items() if n in given}}
        sites = (0, *self.sites) if self.enters else self.sites
        frozen = {site: self.forwards.frozen(now, site) for site in sites}
        run = partial(
            self._run,
            given=given,
            rest=rest,
            now=now,
            steering=frozen.__getitem__,
            hand_over=False,
        )
        checkpoint: Callable[..., Tensor] = self.layer._gradient_checkpointing_func
        return checkpoint(run, stream)

    def _run(
        self,
        stream: Tensor,
        given: Given,
        rest: Given,
        now: ForwardPass,
        steering: Callable[[int], Steering],
        hand_over: bool,
    ) -> Tensor:
        layer, parts, ops, fusing = self.layer, self.layer._modules, self.forwards.ops, now.fusing
        if self.enters:
            stream = ops.steer(stream, steering(0))
            now.measure(stream, 0)
        before = self.bodies[0].step.before
        normed = now.take(stream, parts[before]) if hand_over and before is not None else None
        last = len(self.bodies) - 1
        for number, body in enumerate(self.bodies):
            if normed is None:
                before = body.step.before
                normed = stream if before is None else parts[before](stream)
            branch = body.run(normed, given, rest)
            if branch.dtype is not stream.dtype:
                branch, stream = _same_dtype(branch, stream)
            site = self.sites[number]
            following: Ready | None = None
            if fusing:
                if number < last:
                    between = self.between[number]
                    following = None if between is None else between.ready(stream)
                elif hand_over:
                    following = self._next_norm(stream)
            added: Tensor | None = branch
            if number == last and self.wiring.factor is not None:
                stream, added = (stream + branch) * getattr(layer, self.wiring.factor), None
            stream, normed = steered(ops, stream, added, steering(site), following)
            if number == last and following is not None and normed is not None:
                now.offer(stream, following.norm, normed)
            now.measure(stream, site)
        return stream

    def _next_norm(self, stream: Tensor) -> Ready | None:
        """The norm that reads this layer's output, if nothing can come between; else None."""
        layer = self.layer
        if not stands(self.own_forward, layer.__dict__.get("forward")) or not unobserved(layer):
            return None
        return None if self.next is None else self.next.ready(stream)


def _checkpoints_in_call(layer: nn.Module) -> bool:
    """transformers before 5.23 wraps ``__call__``, around our forward; later ones wrap ``forward``."""
    kinds = type(layer).__mro__
    return any("__call__" in kind.__dict__ for kind in kinds[: kinds.index(nn.Module)])


def _same_dtype(branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast the branch is narrower than the stream; eager addition widens it."""
    wide = torch.promote_types(branch.dtype, stream.dtype)
    return branch.to(wide), stream.to(wide)
