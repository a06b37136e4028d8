"""Loop: what ``handle.generating`` gives a decoding loop of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
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
    The loop keeps the ``use`` that it is opened under, whose plans ``use.change`` changes.
    """

    def __init__(self, attachment: Attachment, tokens: Tensor, mask: Tensor | None) -> None:
        super().__init__(attachment)
        self._attachment = attachment
        self._mask = mask
        self._batch, width = tokens.shape[:2]
        if mask is not None:
            check_mask(mask, self._batch, width)
        self._generation = Generation(tokens, mask, width)
        attachment.hold(self._generation)
        self.seen = 0

    def step(self, length: int, seen: int | None = None) -> None:
        """Route the next ``length`` columns of every row, after those so far or, if that was rewound, ``seen``.

        SteerfastError where the loop has ended, or another ``use`` than its own is in force.
        """
        self._check()
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
        # For the report: where a captured graph is replayed, no forward says that it runs.
        self._attachment.note((int(self._batch), length), self._attachment.routing)
        self.seen += length

    def _check(self) -> None:
        if not self.is_open:
            raise SteerfastError("this loop has ended; call handle.generating(...) again")
        here = self._attachment.in_force()
        if here is not None and here is not self._generation.use:
            raise SteerfastError(
                "another use() is in force here than where this loop was opened, and which one it means is not known; open the "
                "loop inside of it, or change plans by use.change(...)"
            )

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            self._attachment.let_go(self._generation)

    def __enter__(self) -> Loop:
        scope.enter(self)
        return self

    def __exit__(self, *error: Any) -> None:
        scope.leave(self)
        self._attachment.state.prepared = None
        self._end()
        self._attachment.restore()

    def __del__(self) -> None:
        if getattr(self, "is_open", False) and hasattr(self, "_generation"):
            self._end()
