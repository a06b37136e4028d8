"""Entry: a plan that stands in the table, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from steerfast.plans.plan import Plan
from steerfast.table.lowering import Lowered, Phase
from steerfast.table.packing import Cost
from steerfast.table.phases import Origin

UNSTEERED = -1


@dataclass
class Entry:
    """One plan in the table, or a part of one: the slot of each phase (-1 where nothing is active), the bank row of
    each test's key, what it shares of bank and programs, and who holds it."""

    key: str
    plan: Plan
    lowered: Lowered
    slots: tuple[int, ...]
    keys: tuple[int, ...] = ()
    rows: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)
    holders: int = 0
    # On a GPU: when the last step that its last holder started was through with the slots.
    last_use: torch.cuda.Event | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.lowered.phases

    def course(self, places: Mapping[Origin, int]) -> list[tuple[int, int]]:
        """[(first position, slot)], ascending, for a request with its origins at these positions."""
        slot_of = {phase.number: slot for phase, slot in zip(self.phases, self.slots, strict=True)}
        slot_of[-1] = UNSTEERED
        return [(position, slot_of[phase]) for position, phase in self.lowered.course(places)]


def used(entries: list[Entry]) -> Cost:
    """What these plans hold."""
    slots = sum(slot != UNSTEERED for entry in entries for slot in entry.slots)
    rows = {row for entry in entries for row in entry.rows}
    return Cost(slots, len(rows), len({at for entry in entries for at in entry.programs}))
