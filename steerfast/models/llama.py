"""Llama, patched: residual add, steering and RMSNorm as one kernel, twice a layer and nothing else.

Each class below owns the ``forward`` of one module instance. The second kernel of a layer computes the
norm that the next layer starts with and hands it over; where anybody could look in between (a hook, a
foreign ``forward``, a norm whose weight lives elsewhere), the layer runs un-fused and just as right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.errors import SteerfastError
from steerfast.models.devices import input_device
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.forwards import Forwards
from steerfast.models.hand_over import NextNorm, at_hand, unobserved, watched_everywhere
from steerfast.models.prompt_mark import mark
from steerfast.models.rebind import standing_in, stands
from steerfast.ops.records import Steering
from steerfast.plans.sites import site_index
from steerfast.routing.inputs import inputs_of


class SteeredLayer:
    """The ``forward`` of one LlamaDecoderLayer."""

    def __init__(self, layer: Any, index: int, forwards: Forwards) -> None:
        self.layer = layer
        self.forwards = forwards
        self.norm_class = type(layer.input_layernorm)
        self.mid_site = site_index("resid_mid", index)
        self.post_site = site_index("resid_post", index)
        # Set by attach, to notice whoever replaces a forward later: what stands in ``forward`` of this
        # layer, and what runs next.
        self.own_forward: Any = None
        self.next: NextNorm | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's contract in transformers: hidden states in, hidden states out."""
        self = standing_in(self)
        attention: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        layer = self.layer
        now, whole = self.forwards.of_layer(hidden_states)
        if layer.training and layer.gradient_checkpointing:
            return self._checkpointed(hidden_states, attention, now)
        return self._run(hidden_states, attention, now, now.steering, hand_over=whole)

    def _checkpointed(
        self, hidden_states: Tensor, attention: dict[str, Any], now: ForwardPass
    ) -> Tensor:
        """Under gradient checkpointing the layer is one function that backward runs a second time: no
        cache, as in transformers, no hand-over, and steering by value."""
        if _checkpoints_in_call(self.layer):
            raise SteerfastError(
                "gradient checkpointing of a patched model needs transformers >= 5.23: before, the "
                "recomputation in backward would read the plans in force then, not those of the forward"
            )
        attention |= {"past_key_values": None, "use_cache": False}
        sites = self.mid_site, self.post_site
        frozen = {site: self.forwards.frozen(now, site) for site in sites}
        steering = frozen.__getitem__
        run = partial(self._run, attention=attention, now=now, steering=steering, hand_over=False)
        checkpoint: Callable[..., Tensor] = self.layer._gradient_checkpointing_func
        return checkpoint(run, hidden_states)

    def _run(
        self,
        hidden_states: Tensor,
        attention: dict[str, Any],
        now: ForwardPass,
        steering: Callable[[int], Steering],
        hand_over: bool,
    ) -> Tensor:
        layer, ops, fusing = self.layer, self.forwards.ops, now.fusing
        stream: Tensor = hidden_states
        input_norm, mid_norm = layer.input_layernorm, layer.post_attention_layernorm
        taken = now.take(stream, input_norm) if hand_over else None
        normed = input_norm(stream) if taken is None else taken
        branch, _ = layer.self_attn(hidden_states=normed, **attention)
        if branch.dtype is not stream.dtype:
            branch, stream = _same_dtype(branch, stream)
        site = steering(self.mid_site)
        if fusing and at_hand(mid_norm, self.norm_class, stream):
            stream, normed = ops.steer_add_rms_norm(
                branch, stream, mid_norm.weight, mid_norm.variance_epsilon, site
            )
        else:
            stream = ops.steer_add(branch, stream, site)
            normed = mid_norm(stream)
        now.measure(stream, self.mid_site)
        branch = layer.mlp(normed)
        if branch.dtype is not stream.dtype:
            branch, stream = _same_dtype(branch, stream)
        norm = self._next_norm(stream) if fusing and hand_over else None
        site = steering(self.post_site)
        if norm is None:
            stream = ops.steer_add(branch, stream, site)
        else:
            stream, normed = ops.steer_add_rms_norm(
                branch, stream, norm.weight, norm.variance_epsilon, site
            )
            now.offer(stream, norm, normed)
        now.measure(stream, self.post_site)
        return stream

    def _next_norm(self, stream: Tensor) -> Any:
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


class SteeredNorm:
    """The ``forward`` of the final norm: what the last layer handed over, or the original."""

    def __init__(
        self, norm: nn.Module, forwards: Forwards, original: Callable[[Tensor], Tensor]
    ) -> None:
        self.norm, self.forwards, self.original = norm, forwards, original

    def forward(self, hidden_states: Tensor) -> Tensor:
        self = standing_in(self)
        now = self.forwards.now
        normed = None if now is None else now.take(hidden_states, self.norm)
        return self.original(hidden_states) if normed is None else normed


class SteeredModel:
    """The ``forward`` of the LlamaModel: makes the route, steers ``resid_pre`` of layer 0, then runs
    the original on the steered embeddings."""

    def __init__(
        self,
        model: Any,
        forwards: Forwards,
        original: Callable[..., Any],
        layers: list[SteeredLayer],
        first: NextNorm,
    ) -> None:
        self.model, self.forwards, self.original = model, forwards, original
        self.layers, self.first = layers, first
        self._plain = [one.layer for one in layers]
        kinds = {type(model), *(type(one.layer) for one in layers)}
        kinds |= {one.norm_class for one in layers} | {type(model.norm)}
        self._forwards_of = [(kind, kind.forward) for kind in kinds]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        self = standing_in(self)
        inputs: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            **kwargs,
        }
        cache: dict[str, Any] = {"past_key_values": past_key_values, "use_cache": use_cache}
        if (input_ids is None) == (inputs_embeds is None):  # transformers' own error follows
            return self.original(
                input_ids=input_ids, inputs_embeds=inputs_embeds, **inputs, **cache
            )
        self._check_layers()
        forwards, fusing = self.forwards, not watched_everywhere()
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        routed_by = inputs_of(given, input_ids, attention_mask, position_ids, past_key_values)

        def run(now: ForwardPass, **cache: Any) -> Any:
            stream = self._steered(now, self._embedded(input_ids, inputs_embeds))
            return self.original(input_ids=None, inputs_embeds=stream, **inputs, **cache)

        if torch.compiler.is_compiling():
            traced = forwards.traced
            traced.begin(routed_by, forwards.attachment.measured, fusing)
            output = run(traced, **cache)
            traced.end()
            return output
        device = self._device(given)
        with forwards.running(routed_by, device, fusing, past_key_values) as now:
            if now.reads_first:
                # Rows behind the prompt depend, in every layer, on what conditions read at its end.
                with torch.no_grad(), now.reading_only():
                    run(now, past_key_values=None, use_cache=False)
            output = run(now, **cache)
            if now.opens:
                forwards.attachment.state.reading = mark(output)
            return output

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        stream = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        backend = self.forwards.attachment.backend
        if stream.dtype is torch.float64 and backend != "reference":
            raise SteerfastError(
                f"the model is float64 now, which backend {backend} does not know; detach and attach again, which takes the "
                "reference"
            )
        return stream

    def _device(self, given: Tensor) -> torch.device:
        """Where the layers run. Of an offloaded model the inputs know."""
        at = input_device(self.model)
        return given.device if at is None else at

    def _steered(self, now: ForwardPass, stream: Tensor) -> Tensor:
        """There is no branch to add yet, but a norm to hand over."""
        ops, site = self.forwards.ops, now.steering(0)
        norm = self.first.ready(stream) if now.fusing else None
        if norm is None:
            stream = ops.steer(stream, site)
        else:
            stream, normed = ops.steer_rms_norm(stream, norm.weight, norm.variance_epsilon, site)
            now.offer(stream, norm, normed)
        now.measure(stream, 0)
        return stream

    def _check_layers(self) -> None:
        """A layer that was swapped for another would run unsteered, and a class's new forward would not be called."""
        for kind, forward in self._forwards_of:
            if kind.forward is not forward:
                raise SteerfastError(
                    f"{kind.__name__}.forward was replaced after attach, by {kind.forward!r}, and would not be called; undo "
                    "that, or detach and attach again"
                )
        now = list(self.model.layers._modules.values())
        if now == self._plain:  # compares identities, in C
            return
        for index, (layer, ours) in enumerate(zip(now, self.layers, strict=False)):
            if layer is not ours.layer:
                raise SteerfastError(
                    f"layer {index} was replaced after attach, by {type(layer).__name__}; detach and "
                    "attach again"
                )
        if len(now) != len(self.layers):
            raise SteerfastError(
                f"the model had {len(self.layers)} layers at attach and has {len(now)} now; detach and "
                "attach again"
            )
