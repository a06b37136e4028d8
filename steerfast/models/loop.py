"""Loop: what ``handle.generating`` gives a decoding loop of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.generation import Generation
from steerfast.models.scope import InLoop
from steerfast.routing.positions import check_mask


class Loop(InLoop):
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
        self._attachment = attachment
        self._mask = mask
        self._batch, width = tokens.shape[:2]
        if mask is not None:
            check_mask(mask, self._batch, width)
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
        self._attachment.prepare(generation, self._batch, length, mask, self.seen)
        shape = int(self._batch), length
        self._attachment.note(shape, self._attachment.routing, None)  # no forward runs in a replay
        self.seen += length

    def __enter__(self) -> Loop:
        scope.enter(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_open = False
        scope.leave(self)
        self._attachment.state.prepared = None
