"""Entry: a plan that stands in the table, and where; of a plan that was packed elsewhere its numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from steerfast.plans.plan import Plan
from steerfast.table.lowering import Lowered, Phase
from steerfast.table.packing import Cost
from steerfast.table.phases import Origin

UNSTEERED = -1


@dataclass(kw_only=True)
class Held:
    """Numbers that stand in the table, and where: the slot of each phase (-1 where nothing is active), the bank row of
    each test's key, what they share of bank and programs, and how many hold them."""

    key: str
    slots: tuple[int, ...]
    keys: tuple[int, ...] = ()
    rows: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)
    holders: int = 0
    # On a GPU: when the last step that its last holder started was through with the slots.
    last_use: torch.cuda.Event | None = None


@dataclass(kw_only=True)
class Entry(Held):
    """One plan in the table, or a part of one."""

    plan: Plan
    lowered: Lowered

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.lowered.phases

    def course(self, places: Mapping[Origin, int]) -> list[tuple[int, int]]:
        """[(first position, slot)], ascending, for a request with its origins at these positions."""
        slot_of = {phase.number: slot for phase, slot in zip(self.phases, self.slots, strict=True)}
        slot_of[-1] = UNSTEERED
        return [(position, slot_of[phase]) for position, phase in self.lowered.course(places)]


def used(entries: Iterable[Held]) -> Cost:
    """What these hold."""
    entries = list(entries)
    slots = sum(slot != UNSTEERED for entry in entries for slot in entry.slots)
    rows = {row for entry in entries for row in entry.rows}
    return Cost(slots, len(rows), len({at for entry in entries for at in entry.programs}))
