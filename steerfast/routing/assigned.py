"""What the tensors of a thread's routes are made of: the requests in use there, or those of a generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steerfast.errors import SteerfastError
from steerfast.routing.capture import Captured, check_written_before
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.itinerary import Itinerary, itineraries, withheld
from steerfast.routing.route import Route
from steerfast.routing.verdicts import Verdicts, conditions_of
from steerfast.table.entry import Entry
from steerfast.table.table import Table


class Assigned:
    """route, verdicts: on the device; captured forwards read them, so what comes into use is written there at once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.in_use = NOTHING
        self._unknown: SteerfastError | None = None  # why a bare forward cannot be routed
        self.captured = Captured()
        self._assigned_for: object = None  # the generation whose rows the route is made of, if any
        # Whose verdicts are held: a generation, or lengths and conditions.
        self._judged: object = None
        self.route = Route(table.device)
        self.verdicts = Verdicts(self.route.seats, table.device)
        self.judging = self.verdicts  # the verdicts of this forward's seats

    @property
    def device(self) -> torch.device:
        return self.route.device

    def to(self, device: torch.device) -> None:
        """Follow the table to another device."""
        self.route.to(device)
        self.verdicts = self.judging = Verdicts(self.route.seats, device)
        self._judged = None
        self._assign_bare(self.in_use)

    def assign(self, in_use: InUse) -> None:
        """What the next forwards steer by."""
        check_written_before()
        self.in_use = in_use
        self._assign_bare(self.in_use)

    def _assign_bare(self, in_use: InUse) -> None:
        """Fill the device's tensors for forwards outside of ``generate``, as far as their prompts are known."""
        check_written_before()
        self._unknown = self._assigned_for = None
        if in_use.packs:  # its rows are known with the batch
            return self._withhold(in_use)
        rows = len(in_use.requests) if in_use.lengths is None else len(in_use.lengths)
        single = in_use.single and rows == 1
        try:
            if self.captured.behind:
                in_use.check_end(None)
            entries = in_use.each(rows)
            judged = in_use.lengths, conditions_of(entries)
            self._assign_rows(entries, in_use.lengths, in_use.prompts, judged, single)
        except SteerfastError as error:
            self._unknown = error
            self._withhold(in_use)

    def _withhold(self, in_use: InUse) -> None:
        """What has been captured cannot say that its rows are not known; its steered rows become NaN."""
        if self.captured.any:
            self.route.assign([withheld(in_use.requests)], single=True)

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
        check_written_before()
        each = itineraries(entries, lengths, prompts)
        self._reserve(len(each))
        kept = self.verdicts.keep() if judged and judged == self._judged else None
        self.route.assign(each, single)
        if self.route.seats > self.verdicts.seats:
            self.verdicts = self.judging = Verdicts(self.route.seats, self.table.device)
        known: Sequence[int | None] = lengths or [None] * len(entries)
        self.verdicts.assign(list(zip(entries, known, strict=True)), kept)
        self._judged = judged
        return each

    def _make_current(self, batch: int) -> None:
        """The device's tensors are of what is in use, and have room for a batch."""
        if not self._reserve(batch) and self._assigned_for is None:  # else something has run since
            return
        self._assign_bare(self.in_use)

    def _reserve(self, rows: int) -> bool:
        """Room for so many rows; True where the tensors were made anew. SteerfastError where a graph reads the old ones."""
        if rows <= self.route.seats:
            return False
        check_written_before()
        if self.captured.any:
            raise SteerfastError(
                f"a forward was captured in this thread that reads where its rows are from room for {self.route.seats}, and here are "
                f"{rows}; run so many once before the capture, or in another thread"
            )
        self.route.reserve(rows)
        self._judged = None
        return True

    def restore(self) -> None:
        """A generation has ended whose rows these are, or a forward for whose prompts alone they were: what is captured of
        bare forwards reads what is in use."""
        if self.captured.any and (self._assigned_for is not None or self._unknown is not None):
            self._assign_bare(self.in_use)
