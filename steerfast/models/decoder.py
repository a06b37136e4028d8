"""A patched decoder: its own forward, routed, with steered embeddings; and the norm behind its last layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.caches import cache_of, tokens_in, without_cache
from steerfast.decoders.find import Decoder, input_device
from steerfast.errors import SteerfastError
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.forwards import Forwards
from steerfast.models.hand_over import KernelNorm, steered, watched_everywhere
from steerfast.models.outer_mask import mask_of
from steerfast.models.plain_layer import PlainLayer
from steerfast.models.prompt_mark import mark
from steerfast.models.rebind import standing_in
from steerfast.models.steered_layer import SteeredLayer
from steerfast.routing.inputs import inputs_of


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
    """The ``forward`` of the decoder: makes the route, steers ``resid_pre`` of layer 0, then runs the original.

    first: the norm that reads the embeddings, where they enter the first layer as they are: it then runs on steered
    embeddings. Where the model does something to them, the first layer steers what enters it.
    """

    def __init__(
        self,
        decoder: Decoder,
        forwards: Forwards,
        original: Callable[..., Any],
        layers: list[SteeredLayer | PlainLayer],
        *,
        embedded: bool,
        first: KernelNorm | None,
        norms: Iterable[Any],
    ) -> None:
        self.decoder, self.forwards, self.original = decoder, forwards, original
        self.layers, self.embedded, self.first = layers, embedded, first
        self.names = tuple(inspect.signature(original).parameters)
        self._plain = [one.layer for one in layers]
        kinds: set[Any] = {type(decoder.module), *(type(one.layer) for one in layers), *norms}
        self._forwards_of = [(kind, kind.forward) for kind in kinds]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self = standing_in(self)
        given: dict[str, Any] = {**dict(zip(self.names, args, strict=False)), **kwargs}
        input_ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if (input_ids is None) == (embeds is None) or len(given) != len(args) + len(kwargs):
            return self.original(*args, **kwargs)  # the model's own error follows
        self._check_layers()
        forwards, fusing = self.forwards, not watched_everywhere()
        cache = cache_of(given)
        like = given["input_ids" if embeds is None else "inputs_embeds"]
        routed_by = inputs_of(
            like,
            input_ids,
            mask_of(forwards.attachment, given.get("attention_mask"), *like.shape[:2]),
            given.get("position_ids"),
            tokens_in(cache),
        )

        def run(now: ForwardPass, **changed: Any) -> Any:
            if "logits_to_keep" in given and now.acts:
                changed["logits_to_keep"] = 0  # by which layers would be given fewer tokens
            if not self.embedded:
                self._check_dtype(embeds)
                return self.original(**{**given, **changed})
            stream = self._steered(now, self._embedded(input_ids, embeds))
            changed |= {"input_ids": None, "inputs_embeds": stream}
            return self.original(**{**given, **changed})

        if torch.compiler.is_compiling():
            traced = forwards.traced
            traced.begin(routed_by, forwards.attachment.measured, fusing)
            output = run(traced)
            traced.end()
            return output
        device = self._device(routed_by.like)
        with forwards.running(routed_by, device, fusing, cache) as now:
            if now.reads_first:
                # Rows behind the prompt depend, in every layer, on what conditions read at its end.
                with torch.no_grad(), now.reading_only():
                    run(now, **without_cache(given))
            output = run(now)
            if now.opens:
                forwards.attachment.state.reading = mark(output)
            return output

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        stream = self.decoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        self._check_dtype(stream)
        return stream  # type: ignore[no-any-return]

    def _check_dtype(self, stream: Tensor | None) -> None:
        if stream is None:
            stream = next(self.decoder.embedding.parameters(), None)
        backend = self.forwards.attachment.backend
        if stream is not None and stream.dtype is torch.float64 and backend != "reference":
            raise SteerfastError(
                f"the model is float64 now, which backend {backend} does not know; detach and attach again, which takes the "
                "reference"
            )

    def _device(self, given: Tensor) -> torch.device:
        """Where the layers run. Of an offloaded model the inputs know."""
        at = input_device(self.decoder)
        return given.device if at is None else at

    def _steered(self, now: ForwardPass, stream: Tensor) -> Tensor:
        """There is no branch to add yet, but a norm to hand over."""
        ops, site = self.forwards.ops, now.steering(0)
        norm = None if self.first is None or not now.fusing else self.first.ready(stream)
        stream, normed = steered(ops, stream, None, site, norm)
        if norm is not None and normed is not None:
            now.offer(stream, norm.norm, normed)
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
        now = self.decoder.layers
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
