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

from steerfast.errors import SteerfastError
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.inputs import Inputs
from steerfast.routing.itinerary import Itinerary, check_acts_in_prompts, itineraries
from steerfast.routing.positions import positions_of, prompts_of
from steerfast.routing.route import SEATS, Route, RowBuffers, Rows
from steerfast.routing.router import make_router
from steerfast.routing.sequences import Sequences, packed_sequences
from steerfast.routing.verdicts import Verdicts, conditions_of, reads_prompts
from steerfast.table.entry import Entry
from steerfast.table.table import Table


class Routing:
    """The requests in use in a thread, and the route of its next forward."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.in_use = NOTHING
        self.served: Callable[[], tuple[Entry | None, ...]] = lambda: (None,)  # by the last forward
        self.measuring = False  # this forward reads prompts for conditions
        self.measure_first = False  # and has rows that depend on what it will read
        self._unknown: SteerfastError | None = None  # why a bare forward cannot be routed
        self._assigned_for: object = None  # the generation whose rows the route is made of, if any
        self._judged: object = (
            None  # whose verdicts are held: a generation, or lengths and conditions
        )
        self._settled_rows: Rows
        self._settles_at = 0  # from this position on, its rows keep their slots and gains
        self._generated = 0  # how many rows the last generation had
        device = table.device
        self.route = Route(device)
        self.verdicts = Verdicts(self.route.seats, device)
        self.judging = self.verdicts  # the verdicts of this forward's seats
        self.router = make_router(SEATS)
        self.buffers = RowBuffers(device)
        self.rows = self.buffers.idle(1)

    @property
    def device(self) -> torch.device:
        return self.route.device

    def to(self, device: torch.device) -> None:
        """Follow the table to another device."""
        self.route.to(device)
        self.buffers.to(device)
        self.verdicts = self.judging = Verdicts(self.route.seats, device)
        self._judged = None
        self._assign_bare(self.in_use)

    # -- what is in use ---------------------------------------------------------------------------

    def assign(self, in_use: InUse) -> None:
        """What the next forwards steer by."""
        self.in_use = in_use
        self._assign_bare(self.in_use)

    def _assign_bare(self, in_use: InUse) -> None:
        """Fill the device's tensors for forwards outside of ``generate``, as far as their prompts are known."""
        self._unknown = self._assigned_for = None
        if in_use.packs:  # its rows are known with the batch
            return
        rows = len(in_use.requests) if in_use.lengths is None else len(in_use.lengths)
        single = in_use.single and rows == 1
        try:
            entries = in_use.each(rows)
            judged = in_use.lengths, conditions_of(entries)
            self._assign_rows(entries, in_use.lengths, in_use.prompts, judged, single)
        except SteerfastError as error:
            self._unknown = error

    def _assign_rows(
        self,
        entries: Sequence[Entry | None],
        lengths: Sequence[int] | None,
        prompts: Sequence[Sequence[int]] | None,
        judged: object,
        single: bool = False,
    ) -> list[Itinerary]:
        """Itineraries and conditions of each row of a batch, into the tensors that routes are made of.

        judged: whose the conditions are. What they have decided is kept, if they are those that are there."""
        each = itineraries(entries, lengths, prompts)
        kept = self.verdicts.keep() if judged and judged == self._judged else None
        self.route.assign(each, single)
        if self.route.seats > self.verdicts.seats:
            self.verdicts = self.judging = Verdicts(self.route.seats, self.table.device)
        known: Sequence[int | None] = lengths or [None] * len(entries)
        self.verdicts.assign(list(zip(entries, known, strict=True)), kept)
        self._judged = judged
        return each

    def _begin(self) -> None:
        requests = self.in_use.requests
        self.served, self.judging = lambda: requests, self.verdicts
        self.measuring = self.measure_first = False

    # -- a forward of its own ----------------------------------------------------------------------

    def bare(self, inputs: Inputs, in_generate: bool) -> Rows:
        """The rows of a forward whose positions nobody has prepared."""
        (batch, length), mask, seen = inputs.shape, inputs.mask, inputs.seen
        in_use, device = self.in_use, self.table.device
        self._begin()
        if not in_use.active and (in_generate or in_use.count in (None, batch)):
            in_use.check_batch(batch, exact=not in_generate)
            return self.buffers.idle(batch * length)
        if inputs.mask_kind:
            raise SteerfastError(
                f"a {inputs.mask_kind} attention mask does not tell padding from tokens, and padding is never "
                "steered; pass a 2-D attention_mask, or none if there is no padding"
            )
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
        elif self._assigned_for is not None:  # something else has run since
            self._assign_bare(in_use)
        self._check_knowledge(inputs)
        if self.route.reserve(batch):
            self.to(device)
        rows = self.route.look_up(batch, positions, real)
        return self._with_verdicts(rows, positions, real, seen) if in_use.conditional else rows

    def _check_knowledge(self, inputs: Inputs) -> None:
        """What the plans in use ask of the prompts is known, or an error."""
        in_use, tokens, batch = self.in_use, inputs.tokens, inputs.shape[0]
        in_use.check_lengths(batch)
        if in_use.lengths is None and in_use.by_prompt and inputs.begun != 0:
            raise SteerfastError(
                f"this forward goes on behind {inputs.begun or 'some'} tokens of a cache, and where the prompt ends is not "
                "known, so prompt and generated tokens cannot be told apart; call generate of the model that was attached, say "
                "where prompts end (handle.use(plans, prompt_lengths=[...])), or run the loop in handle.generating(ids, mask)"
            )
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
        if inputs.begun != 0:
            raise SteerfastError(
                "position ids start again within a row, so it holds several sequences, but a cache holds what came before "
                "them; read packed rows in one forward, without a cache"
            )
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
            self.measure_first = given is not None and any(
                entry and entry.plan.condition and prompt < whole
                for entry, prompt, whole in zip(entries, given, packed.lengths, strict=True)
            )
            self.verdicts.reset()
            rows = rows._replace(gain=self.verdicts.gain(rows.base, rows.seat))
        return rows

    def _with_verdicts(
        self, rows: Rows, positions: Tensor, real: Tensor | None, seen: int | Tensor
    ) -> Rows:
        """For plans with conditions: start anew with a new prompt, and put what is decided into the gains."""
        self.measuring = True
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            lengths = self.in_use.lengths
            assert lengths is not None
            if int(seen) == 0:
                self.verdicts.reset()
            each = zip(self.in_use.each(len(lengths)), lengths, strict=True)
            ends = [length if entry and entry.plan.condition else 0 for entry, length in each]
            self.measuring, across = reads_prompts(positions, real, ends)
            self.verdicts.check_read(positions, real, ends)
            self._measure_ahead(across, seen)
        return rows._replace(gain=self.verdicts.gain(rows.base, rows.seat))

    def _measure_ahead(self, across: bool, seen: int | Tensor) -> None:
        """across: the forward holds tokens of a prompt and tokens behind it, which depend on what the prompt decides. Then
        a pass that only reads goes ahead; but not where a cache holds what came before, which such a pass would lack."""
        self.measure_first = across
        if across and int(seen) > 0:
            raise SteerfastError(
                "a plan has a condition, which is decided at the prompt's end, and this forward holds the end of a prompt "
                f"and tokens behind it, after {int(seen)} in a cache; end a chunk where the prompt ends"
            )

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
