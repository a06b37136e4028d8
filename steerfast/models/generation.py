"""``generate``, patched: it knows where prompts end and fills the route before every step.

Positions of the prompt come from the 2-D mask that ``prepare_inputs_for_generation`` is given; behind it every
column is a token. So KV cache, left padding, beams, chunked prefill and speculative decoding need no special
case, and a compiled model finds its route ready in fixed buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.scope import Scope
from steerfast.models.stand_in import StandIn
from steerfast.routing.in_use import InUse
from steerfast.routing.positions import prompts_of
from steerfast.routing.routing import Routing

if TYPE_CHECKING:
    from steerfast.models.use import Use


class Generation:
    """One call of ``generate``.

    tokens: the ids of the prompts [R, T], None where embeddings were given. mask: theirs. width: columns of the
    prompt, padding and tokens that a given cache already holds included. use: what it began under.
    """

    def __init__(
        self, tokens: Tensor | None, mask: Tensor | None, width: int, use: Use | None = None
    ) -> None:
        self.tokens, self.mask, self.width, self.use = tokens, mask, width, use
        self.complete = False  # the whole prompt has been seen, so its lengths are final
        self._lengths: tuple[int, ...] = ()

    def route(
        self, routing: Routing, batch: int, length: int, mask: Tensor | None, seen: int
    ) -> None:
        """Route the next ``length`` columns of every row, after ``seen``."""
        if not self.complete:
            self._learn(routing, batch, mask, seen)
        if len(self._lengths) != batch:
            raise SteerfastError(
                f"generate changed its batch from {len(self._lengths)} to {batch} rows; this "
                "generation strategy is not supported"
            )
        if not routing.serves(self):  # other plans since the last step, or somebody else's rows
            self._begin(routing, seen, going_on=True)
        if self.complete and seen >= self.width:
            routing.decode_step(np.array(self._lengths) + (seen - self.width), length)
        else:
            routing.prompt_step(batch, length, mask, seen, self.width)

    def _learn(self, routing: Routing, batch: int, mask: Tensor | None, seen: int) -> None:
        """P of every row: the real tokens of its prompt."""
        missing = 0
        whole = None if mask is None else self._whole(mask)
        if mask is None:
            lengths = [max(self.width, seen)] * batch
        elif whole is not None:
            lengths = (whole != 0).sum(-1).tolist()
        else:
            # Speculative decoding may show candidates behind the prompt already; and of a prompt that comes in
            # chunks, whatever is still missing is prompt.
            lengths = (mask[:, : self.width] != 0).sum(-1).tolist()
            missing = max(self.width - mask.shape[1], 0)
        known = tuple(length + missing for length in lengths)
        self.complete = missing == 0
        if known != self._lengths:
            going_on = bool(self._lengths)
            self._lengths = known
            self._begin(routing, seen, going_on)

    def _whole(self, mask: Tensor) -> Tensor | None:
        """The mask of the whole prompts, a row for each of the generation's, if it is known and this one does not differ."""
        if self.mask is None or mask.shape[0] % self.mask.shape[0]:
            return None
        whole = self.mask.to(mask.device).repeat_interleave(
            mask.shape[0] // self.mask.shape[0], dim=0
        )
        shown = min(self.width, mask.shape[1])
        same = torch.equal(whole[:, :shown] != 0, mask[:, :shown] != 0)
        return whole[:, : self.width] if same and whole.shape[1] >= self.width else None

    def _begin(self, routing: Routing, seen: int, going_on: bool) -> None:
        prompts = self._prompts(routing)
        routing.begin_generation(self, self._lengths, prompts, seen, going_on)

    def _prompts(self, routing: Routing) -> list[list[int]] | None:
        """The prompts' ids, row by row, where a plan looks for a sequence in them."""
        sought = any(
            entry is not None and entry.lowered.sequences for entry in routing.in_use.requests
        )
        if not sought:
            return None
        rows = len(self._lengths)
        # By use(), where ids are not at hand, or not all of them.
        given: Sequence[Sequence[int]] | None = routing.in_use.prompts
        if given is None:
            if self.tokens is None or self.tokens.shape[1] != self.width:
                return None
            given = prompts_of(self.tokens, self.mask, None)
        if rows % len(given):
            raise ValueError(f"use() was given {len(given)} prompts, but generate has {rows} rows")
        each = [list(prompt) for prompt in given for _ in range(rows // len(given))]
        for row, (prompt, length) in enumerate(zip(each, self._lengths, strict=True)):
            if len(prompt) != length and self.complete:
                raise ValueError(
                    f"the prompt of row {row} has {length} tokens, but its ids as given to use(prompts=) are "
                    f"{len(prompt)}; give the ids of the whole prompt, without padding"
                )
        return each


class Loop(Scope):
    """A decoding loop of one's own, in which ``generate`` would have said where prompts end.

        with handle.use(plans), handle.generating(ids, mask) as loop:
            loop.step(ids.shape[1])                       # route the prompt, or a chunk of it
            cache = model(ids, attention_mask=mask).past_key_values
            loop.step(1)                                  # route one token of every row
            graph.replay()                                # or a compiled step, or model(...)

    A step routes the forward that follows in the same thread, into fixed buffers: a captured or compiled forward reads them.
    """

    def __init__(self, attachment: Attachment, tokens: Tensor, mask: Tensor | None) -> None:
        super().__init__(attachment)
        self._mask = mask
        self._batch, width = tokens.shape[:2]
        self._generation = Generation(tokens, mask, width)
        self.seen = 0

    def step(self, length: int, seen: int | None = None) -> None:
        """Route the next ``length`` columns of every row, after those so far or, if that was rewound, ``seen``."""
        if seen is not None:
            self.seen = seen
        mask, generation = self._mask, self._generation
        if generation.complete and self.seen >= generation.width:
            mask = None  # behind the prompt all are tokens
        if mask is not None:
            mask = mask[:, : self.seen + length]
            more = self.seen + length - mask.shape[1]
            mask = torch.nn.functional.pad(mask, (0, more), value=1)
        self.attachment.prepare(generation, self._batch, length, mask, self.seen)
        shape = int(self._batch), length
        self.attachment.forwards.note(
            shape, self.attachment.routing, None
        )  # no forward runs in a replay
        self.seen += length

    def __enter__(self) -> Loop:
        scope.enter(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_open = False
        scope.leave(self)
        self.attachment.state.prepared = None


class SteeredGenerate(StandIn):
    """Stands in for ``model.generate``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared
        given = args[0] if args else kwargs.get("inputs")
        ids = given if given is not None else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        prompt = ids if ids is not None else embeds
        if prompt is None:  # transformers starts from the BOS token
            batch, width = 1, 1
        else:
            batch, width = prompt.shape[0], prompt.shape[1]
        mask = kwargs.get("attention_mask")
        flat = mask if mask is not None and mask.ndim == 2 else None
        if flat is not None:  # covers a given cache, which the prompt may not
            width = flat.shape[1]
        in_use = shared.in_use()
        in_use.check_batch(batch, exact=True, what="generate got {} prompts")
        _check_healing(in_use, kwargs, self.original)
        if mask is None:
            flat = _inferred(ids, kwargs, self.original)
        with shared.generating(Generation(ids, flat, width, shared.in_force())):
            return self.original(*args, **kwargs)


def _setting(name: str, kwargs: dict[str, Any], generate: Callable[..., Any]) -> Any:
    """A setting of a call of ``generate``: an argument, else of the configuration given, else of the model's."""
    own = getattr(getattr(generate, "__self__", None), "generation_config", None)
    settings = kwargs.get("generation_config") or own
    return kwargs.get(name, getattr(settings, name, None))


def _inferred(
    ids: Tensor | None, kwargs: dict[str, Any], generate: Callable[..., Any]
) -> Tensor | None:
    """The mask that ``generate`` will infer where it was given none: what is not the pad token, if that ends no text."""
    pad = _setting("pad_token_id", kwargs, generate)
    ends = _setting("eos_token_id", kwargs, generate)
    if ids is None or pad is None or kwargs.get("past_key_values") is not None:
        return None
    if pad in (ends if isinstance(ends, (list, tuple)) else [ends]) or not (ids == pad).any():
        return None
    mask: Tensor = (ids != pad).long()
    return mask


def _check_healing(in_use: InUse, kwargs: dict[str, Any], generate: Callable[..., Any]) -> None:
    """SteerfastError where ``generate`` is to change the prompt's tokens before it reads them, and a plan counts them."""
    heals = _setting("token_healing", kwargs, generate)
    if heals and (in_use.by_position or not in_use.single):
        raise SteerfastError(
            "token_healing changes the end of each prompt in generations of their own, so that neither prompts nor rows "
            "are those that plans were given for; use one plan that selects 'all' tokens, or switch it off"
        )


class SteeredPrepare(StandIn):
    """Stands in for ``model.prepare_inputs_for_generation``."""

    def __call__(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = self.original(input_ids, *args, **kwargs)
        generation = self.shared.state.generation
        if generation is not None:
            tokens = prepared.get("input_ids")
            tokens = prepared["inputs_embeds"] if tokens is None else tokens
            batch, length = map(int, tokens.shape[:2])
            mask = kwargs.get("attention_mask")  # before a static cache turns it into a 4-D one
            seen = _seen(kwargs.get("past_key_values"), mask, length)
            self.shared.prepare(generation, batch, length, mask, seen)
        return prepared


def _seen(cache: Any, mask: Tensor | None, length: int) -> int:
    """How many tokens a cache holds. A static one keeps that on the device; the mask says it too."""
    seen = 0 if cache is None else cache.get_seq_length()
    if isinstance(seen, int):
        return seen
    return int(seen) if mask is None else mask.shape[1] - length
