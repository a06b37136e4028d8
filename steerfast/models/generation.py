"""A generation: which prompts it began with, and so the route of each of its steps.

Positions of the prompt come from the 2-D mask that ``prepare_inputs_for_generation`` is given; behind it every
column is a token. So KV cache, left padding, beams, chunked prefill and speculative decoding need no special
case, and a compiled model finds its route ready in fixed buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.models.in_force import PlansInForce
from steerfast.routing.positions import prompts_of
from steerfast.routing.routing import Routing


class Generation:
    """One call of ``generate``.

    tokens: the ids of the prompts [R, T], None where embeddings were given. mask: theirs. width: columns of the
    prompt, padding and tokens that a given cache already holds included. use: what it began under.
    """

    def __init__(self, tokens: Tensor | None, mask: Tensor | None, width: int) -> None:
        self.tokens, self.mask, self.width = tokens, mask, width
        self.use: PlansInForce | None = None
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
        if not going_on and seen >= self.width and routing.in_use.conditional:
            raise SteerfastError(
                f"a plan has a condition, which is read in the prompt, but this generation goes on behind all of its "
                f"{self.width} columns; read the prompt in it"
            )
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
        elif self.tokens is not None and self.tokens.shape[1] == self.width:
            routing.in_use.check_ids(prompts_of(self.tokens, self.mask, None))
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
