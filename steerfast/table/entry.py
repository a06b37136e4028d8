"""Entry: a plan in the table, and the slots that its phases have there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from steerfast.plans.plan import Plan
from steerfast.table.lowering import Lowered, Phase

UNSTEERED = -1


@dataclass
class Entry:
    """One plan in the table: the slot of each phase (-1 where nothing is active), the bank row of each
    test's key, what it shares of bank and programs, and who holds it."""

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
