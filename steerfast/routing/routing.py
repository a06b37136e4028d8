"""Where the route of each forward comes from: plans in use, prompts, masks and caches. Each thread has its own.

Three ways lead here: a forward of its own (``bare``), a step of ``generate`` (``prompt_step``, ``decode_step``), and a
packed batch of a serving engine, by ``PackedRequests``, which fills the rows itself. What cannot be determined is an
error before any layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerfast.routing.assigned import Assigned
from steerfast.routing.capture import capturing
from steerfast.routing.inputs import Inputs
from steerfast.routing.itinerary import check_acts_in_prompts
from steerfast.routing.positions import positions_of, prompts_of
from steerfast.routing.route import SEATS, RowBuffers, Rows
from steerfast.routing.router import make_router
from steerfast.routing.sequences import Sequences, packed_sequences
from steerfast.routing.verdicts import check_reads_all, reads_prompts
from steerfast.table.entry import Entry
from steerfast.table.table import Table


class Routing(Assigned):
    """The requests in use in a thread, and the route of its next forward."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.served: Callable[[], tuple[Entry | None, ...]] = lambda: (None,)  # by the last forward
        self.measuring = False  # this forward reads prompts for conditions
        self.measure_first = False  # and has rows that depend on what it will read
        self._settled_rows: Rows
        self._settles_at = 0  # from this position on, its rows keep their slots and gains
        self._generated = 0  # how many rows the last generation had
        self.router = make_router(SEATS)
        self.buffers = RowBuffers(table.device)
        self.rows = self.buffers.idle(1)

    def to(self, device: torch.device) -> None:
        self.buffers.to(device)
        super().to(device)

    def _begin(self) -> None:
        requests, self.judging = self.in_use.requests, self.verdicts
        self.served = lambda: requests
        self.measuring = self.measure_first = False

    # -- a forward of its own ----------------------------------------------------------------------

    def bare(self, inputs: Inputs, in_generate: bool) -> Rows:
        """The rows of a forward whose positions nobody has prepared."""
        (batch, length), mask, seen = inputs.shape, inputs.mask, inputs.seen
        in_use, device = self.in_use, self.table.device
        self._begin()
        # Not where a graph is captured: its replays look up what is in use by then.
        idle = not in_use.active and (in_generate or in_use.count in (None, batch))
        if idle and (in_generate or not capturing()):
            in_use.check_batch(batch, exact=not in_generate)
            if not in_generate:
                self._make_current(batch)  # this may be the warm-up of a capture
            return self.buffers.idle(batch * length)
        inputs.check_mask_kind()
        if seen is None:
            in_use.check_uncounted()
            seen = 0  # any position will do
        positions, real = positions_of(mask, batch, seen, length, device)
        ids = inputs.position_ids
        if ids is not None and length > 1 and not in_generate and in_use.tells_sequences(batch):
            packed = packed_sequences(ids.to(device), real, batch)
            if packed is not None:
                return self._packed(batch, packed, inputs)
        in_use.check_batch(batch, exact=not in_generate)
        if in_generate:
            self._assign_bare(in_use.unprepared(batch, self._generated))
        else:
            self._make_current(batch)
        self._check_knowledge(inputs)
        rows = self.route.look_up(batch, positions, real)
        if capturing():
            self.captured.note(inputs.begun)
        if in_use.conditional or capturing():  # a plan that comes later may have a condition
            rows = self._with_verdicts(rows, positions, real, seen)
        return rows

    def _check_knowledge(self, inputs: Inputs) -> None:
        """What the plans in use ask of the prompts is known, or an error."""
        in_use, tokens, batch = self.in_use, inputs.tokens, inputs.shape[0]
        in_use.check_lengths(batch)
        in_use.check_end(inputs.begun)
        if in_use.prompts is not None and tokens is not None and inputs.begun == 0:
            in_use.check_ids(prompts_of(tokens, inputs.mask, None))
        if self._unknown is None:
            return
        if in_use.prompts is None and tokens is not None and inputs.begun == 0:
            # The whole prompt is at hand, so its end and a sequence in it can be found. Of this forward only:
            # the next one may bring other prompts, or go on with these, and then nobody says where they end.
            prompts, entries = prompts_of(tokens, inputs.mask, in_use.lengths), in_use.each(batch)
            in_use.check_whole(entries, prompts)
            each = self._assign_rows(entries, in_use.lengths, prompts, None)
            if in_use.lengths is None:
                check_acts_in_prompts(entries, each, [len(prompt) for prompt in prompts])
            return
        raise self._unknown

    def _packed(self, batch: int, packed: Sequences, inputs: Inputs) -> Rows:
        """The rows of a forward whose rows hold several sequences: each has a seat of its own."""
        packed.check_whole(inputs.begun)
        in_use, given = self.in_use, self.in_use.lengths
        entries = in_use.of_sequences(batch, packed.row_of)
        read = None if inputs.tokens is None else packed.split(inputs.tokens)
        prompts = in_use.prompts_in(entries, read, given or packed.lengths)
        self._assigned_for = packed  # and what is in use by itself is assigned anew thereafter
        each = self._assign_rows(entries, given or packed.lengths, prompts, None)
        if given is None:
            check_acts_in_prompts(entries, each, packed.lengths)
        seats, places = packed.of_token.reshape(-1), packed.positions.reshape(-1, 1)
        rows = self.route.look_up(len(seats), places, (seats >= 0)[:, None], seats.clamp(min=0))
        if in_use.conditional:
            self.measuring = True
            ends = zip(entries, given or packed.lengths, packed.lengths, strict=True)
            self.measure_first = any(
                one and one.plan.condition and prompt < whole for one, prompt, whole in ends
            )
            self.verdicts.reset()
            rows = rows._replace(gain=self.verdicts.gain(rows.base, rows.seat))
        return rows

    def _with_verdicts(
        self, rows: Rows, positions: Tensor, real: Tensor | None, seen: int | Tensor
    ) -> Rows:
        """For plans with conditions: start anew with a new prompt, and put what is decided into the gains."""
        self.measuring = True
        if capturing():
            self.verdicts.reset_where(seen == 0)
        else:
            if int(seen) == 0:
                self.verdicts.reset()
            ends = self.in_use.decided_at()
            self.measuring, across = reads_prompts(positions, real, ends)
            self.verdicts.check_read(positions, real, ends)
            self._measure_ahead(across, seen)
        return rows._replace(gain=self.verdicts.gain(rows.base, rows.seat))

    def _measure_ahead(self, across: bool, seen: int | Tensor) -> None:
        """across: the forward holds tokens of a prompt and tokens behind it, which depend on what the prompt decides. Then
        a pass that only reads goes ahead; but not where a cache holds what came before, which such a pass would lack."""
        self.measure_first = across
        if across:
            check_reads_all(int(seen))

    # -- a step of generate ----------------------------------------------------------------------------

    def serves(self, generation: object) -> bool:
        """Whether the route is made of this generation's rows; not once plans or who runs have changed."""
        return self._assigned_for is generation

    def begin_generation(
        self,
        generation: object,
        lengths: Sequence[int],
        prompts: Sequence[Sequence[int]] | None,
        seen: int,
        going_on: bool,
    ) -> None:
        """Rows of a generation and where their prompts end. Each of the plans serves an equal share.

        going_on: the prompt has been read, in part or whole, so that only conditions that were there can be kept.
        """
        requests = self.in_use.requests
        share = len(lengths) // len(requests)
        entries = [entry for entry in requests for _ in range(share)]
        if going_on:
            self.verdicts.check_kept(entries, known=self._judged is generation)
        else:
            self.in_use.check_cache(seen)
            self._judged = None
        each = self._assign_rows(entries, lengths, prompts, generation)
        self._assigned_for, self._generated = generation, len(lengths)
        self.buffers.written_by = None
        last = [0, *(places[-1] for one in each for places in (one.starts, one.gain_at) if places)]
        self._settles_at = max(last)
        if len(each) > self.router.seats:
            self.router = make_router(self.route.seats)
        for seat, one in enumerate(each):
            self.router.set(seat, *(list(part) for part in one))  # type: ignore[arg-type]

    def prompt_step(
        self, batch: int, length: int, mask: Tensor | None, seen: int | Tensor, width: int
    ) -> None:
        """Fill the buffers for tokens of the prompt (and perhaps some behind it), by their mask."""
        positions, real = positions_of(mask, batch, seen, length, self.table.device)
        rows = self.route.look_up(batch, positions, real)
        self._begin()
        self.measuring = self.in_use.conditional
        if self.in_use.conditional:
            self._measure_ahead(int(seen) < width < int(seen) + length, seen)
            rows = rows._replace(gain=self.verdicts.gain(rows.base, rows.seat))
        self.rows = self.buffers.at(batch * length)
        for buffer, values in zip(self.rows, rows, strict=True):
            buffer.copy_(values)

    def decode_step(self, first: NDArray[np.int64], length: int) -> None:
        """Fill the buffers for ``length`` generated tokens of every row, from positions ``first`` on."""
        self._begin()
        rows = len(first) * length
        settled = self._assigned_for, rows
        still = int(first.min()) >= self._settles_at  # not so of a loop that was rewound
        if still and self.buffers.written_by == settled:  # most steps: nothing has changed
            self.rows = self._settled_rows
            return
        if not self.in_use.active:
            self.rows = self.buffers.unsteered(rows)
        else:
            counts, seats = np.full(len(first), length), np.arange(len(first))
            self.rows = self.buffers.fill(
                rows, lambda lines: self.router.fill(seats, first, counts, lines)
            )
        if self.in_use.conditional:  # verdicts follow positions, and the gains what was decided
            self.rows.gain.copy_(self.verdicts.gain(self.rows.base, self.rows.seat))
        elif still:
            self.buffers.written_by, self._settled_rows = settled, self.rows
