"""What ``use`` has set: a plan for all rows or one a row, and what is known of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.plans.fields import wholes
from steerfast.table.entry import Entry


@dataclass(frozen=True)
class InUse:
    """The requests that forwards are steered by.

    requests: one for all rows (``single``), or one a row. lengths, prompts: of the rows of a bare forward; ``generate``
    finds its own.
    """

    requests: tuple[Entry | None, ...]
    single: bool = True
    lengths: tuple[int, ...] | None = None
    prompts: tuple[tuple[int, ...], ...] | None = None

    @property
    def count(self) -> int | None:
        """How many rows there are plans for; None: one plan for all rows."""
        return None if self.single else len(self.requests)

    def each(self, rows: int) -> tuple[Entry | None, ...]:
        """The request of every row of a batch."""
        return self.requests * rows if self.single else self.requests

    @cached_property
    def active(self) -> bool:
        """Something is steered."""
        return any(entry is not None for entry in self.requests)

    @cached_property
    def measured(self) -> frozenset[int]:
        """The sites at which conditions of these plans read."""
        conditions = [entry.plan.condition for entry in self.requests if entry is not None]
        return frozenset(
            test.measured_at for one in conditions if one is not None for test in one.tests
        )

    @property
    def conditional(self) -> bool:
        """Some plan has a condition."""
        return bool(self.measured)

    def decided_at(self) -> list[int]:
        """Of rows whose prompts' lengths are known: where each prompt ends that a condition reads; else 0."""
        assert self.lengths is not None
        each = zip(self.each(len(self.lengths)), self.lengths, strict=True)
        return [length if entry and entry.plan.condition else 0 for entry, length in each]

    @cached_property
    def by_prompt(self) -> bool:
        """Whether any plan asks where its prompt ends, or what is in it."""
        return any(
            entry is not None
            and bool(
                set(entry.lowered.origins) - {"start"}
                or entry.plan.schedule
                or entry.plan.condition
            )
            for entry in self.requests
        )

    @cached_property
    def by_position(self) -> bool:
        """Whether any plan asks where in its request a token is."""
        return any(
            entry is not None
            and bool(entry.lowered.origins or entry.plan.schedule or entry.plan.condition)
            for entry in self.requests
        )

    def tells_sequences(self, batch: int) -> bool:
        """Whether it matters to these plans, or to what is known of prompts, that a row of a batch holds several sequences."""
        known = batch if self.lengths is None else len(self.lengths)
        return self.by_position or self.count not in (None, batch) or known != batch

    @property
    def packs(self) -> bool:
        """Whether there is a plan for each row, and each holds several sequences, whose prompts' lengths are given."""
        return not self.single and len(self.lengths or ()) > len(self.requests)

    def check_batch(self, batch: int, exact: bool, what: str = "the batch has {} rows") -> None:
        """ValueError unless these plans fit a batch. exact: as many rows as plans; else a multiple will do."""
        plans = self.count
        if plans is None or (batch == plans if exact else batch % plans == 0):
            return
        raise ValueError(
            f"use() was given {plans} plans, but {what.format(batch)}; give one plan (or None) "
            "per prompt, or a single plan for all"
        )

    def check_uncounted(self) -> None:
        """SteerfastError where a plan asks where tokens are, and a cache does not say how many it holds."""
        if self.by_position:
            raise SteerfastError(
                "this forward goes on with a cache that does not say how many tokens it holds, and a plan in use asks where "
                "they are; call generate, run the loop in handle.generating(ids, mask), or pass the attention_mask of the "
                "whole sequence"
            )

    def check_lengths(self, batch: int) -> None:
        """ValueError unless the prompt lengths, if they are known, are those of a batch of this many rows."""
        if self.lengths is not None and len(self.lengths) != batch:
            raise ValueError(
                f"use() was given {len(self.lengths)} prompt lengths, but the batch has {batch} rows; "
                "give one length per row"
            )

    def check_end(self, begun: int | None) -> None:
        """SteerfastError where a plan asks for the prompt's end, which may lie anywhere before or in a forward that goes on
        behind so many tokens of a cache (None: nobody may look)."""
        if self.lengths is None and self.by_prompt and begun != 0:
            raise SteerfastError(
                f"this forward goes on behind {begun or 'some'} tokens of a cache, and where the prompt ends is not "
                "known, so prompt and generated tokens cannot be told apart; call generate of the model that was attached, say "
                "where prompts end (handle.use(plans, prompt_lengths=[...])), or run the loop in handle.generating(ids, mask)"
            )

    def check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """ValueError where the prompts that ``use`` was given are not those that rows of ids begin with."""
        for number, (prompt, row) in enumerate(zip(self.prompts or (), rows, strict=False)):
            pairs = enumerate(zip(prompt, row, strict=False))
            at = next((place for place, (told, read) in pairs if told != read), None)
            if at is not None:
                raise ValueError(
                    f"the prompt of row {number} was given to use(prompts=) with token {prompt[at]} at position {at}, and the "
                    f"model reads {row[at]} there; give the ids that it reads, without padding"
                )

    def prompts_in(
        self,
        entries: Sequence[Entry | None],
        read: Sequence[Sequence[int]] | None,
        lengths: Sequence[int],
    ) -> Sequence[Sequence[int]] | None:
        """The prompts of sequences of which a forward reads these ids: as they were given, or what it reads of them."""
        if read is None:
            return self.prompts
        if self.prompts is not None:
            self.check_ids(read)
            return self.prompts
        prompts = [one[:length] for one, length in zip(read, lengths, strict=True)]
        self.check_whole(entries, prompts)
        return prompts

    def check_whole(
        self, entries: Sequence[Entry | None], prompts: Sequence[Sequence[int]]
    ) -> None:
        """SteerfastError where a plan acts after a sequence in a prompt of which only a beginning is here."""
        for entry, prompt, length in zip(entries, prompts, self.lengths or (), strict=False):
            if entry is not None and entry.lowered.sequences and len(prompt) < length:
                raise SteerfastError(
                    f"plan {entry.plan.digest[:8]} acts after a token sequence, and of a prompt of {length} tokens this "
                    f"forward has the first {len(prompt)}; give all of it: handle.use(plans, prompts=[[ids], ...])"
                )

    def check_cache(self, seen: int) -> None:
        """SteerfastError where a condition averages over a prompt of which a cache brings tokens unread."""
        for entry in self.requests if seen else ():
            if entry is not None and entry.plan.condition and entry.plan.condition.averages:
                raise SteerfastError(
                    f"plan {entry.plan.digest[:8]} has a condition that averages over the prompt, but a cache brings "
                    f"{seen} of its tokens; generate without it, or test the last token only"
                )

    def of_sequences(self, batch: int, row_of: Sequence[int]) -> tuple[Entry | None, ...]:
        """The request of every one of the sequences packed into a batch: that of its row, or a list has one for each.

        row_of: the row that holds each. ValueError for another number of plans, or of prompt lengths.
        """
        sequences = len(row_of)
        if self.lengths is not None and len(self.lengths) != sequences:
            raise ValueError(
                f"use() was given {len(self.lengths)} prompt lengths, but the batch packs {sequences} sequences into "
                f"{batch} rows (its position ids start again); give one length per sequence"
            )
        if self.single or len(self.requests) == sequences:
            return self.each(sequences)
        if len(self.requests) != batch:
            raise ValueError(
                f"use() was given {len(self.requests)} plans, but the batch packs {sequences} sequences into {batch} rows "
                "(its position ids start again); give a plan per sequence, per row, or one for all"
            )
        return tuple(self.requests[row] for row in row_of)

    def unprepared(self, batch: int, generated: int) -> InUse:
        """These plans for the rows of a forward that came unannounced inside ``generate``: guidance, another extra pass.

        generated: the rows of the generation, an equal share for each plan, in order. A pass of as many rows is one over
        these. SteerfastError where a plan asks where the prompt ends, and where plans differ and the pass has other
        rows: nobody says whose they are.
        """
        if self.by_position:
            raise SteerfastError(
                "generate called the model with rows that it had not prepared (guidance or another "
                "extra pass), so prompt and generated tokens cannot be told apart there; use plans "
                "that select 'all' tokens with this strategy"
            )
        if self.single:
            return self
        if len(set(map(id, self.requests))) > 1 and batch not in (len(self.requests), generated):
            raise SteerfastError(
                f"generate called the model with {batch} rows that it had not prepared, and {len(self.requests)} plans "
                f"that differ are in use: whose rows they are is not known; use one plan for all with this strategy"
            )
        share = batch // len(self.requests)
        return replace(self, requests=tuple(one for one in self.requests for _ in range(share)))

    def check_idle(self) -> None:
        """SteerfastError where something is steered, by somebody who wants to copy the model."""
        if self.active:
            raise SteerfastError(
                "a model cannot be copied while a plan is in use, since nobody could end it on the copy; "
                "end use() first, or copy the model before attaching it"
            )


def known_prompts(
    lengths: Tensor | Sequence[int] | None, prompts: Sequence[Sequence[int]] | None
) -> tuple[tuple[int, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """What ``use`` was told of prompts: (lengths, token ids), as integers; ids say their lengths.

    TypeError for what is no integer, ValueError for a length below 0, or lengths that are not those of the prompts.
    """
    counts = None if lengths is None else wholes("a prompt length", lengths)
    if counts is not None and min(counts, default=0) < 0:
        raise ValueError(f"prompt lengths count tokens, got {list(counts)}")
    if prompts is None:
        return counts, None
    ids = tuple(wholes("a token id of a prompt", prompt) for prompt in prompts)
    own = tuple(len(prompt) for prompt in ids)
    if counts not in (None, own):
        raise ValueError(
            f"use() was given prompt_lengths {list(counts or ())}, but prompts of {list(own)} tokens; give one of them"
        )
    return own, ids


NOTHING = InUse((None,))
