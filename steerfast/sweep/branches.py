"""Which plans can share a row of a batch, and for how long: those that have done the same so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerfast.plans.plan import Plan
from steerfast.routing.itinerary import NOWHERE, Itinerary, itinerary
from steerfast.table.entry import UNSTEERED
from steerfast.table.lowering import lower
from steerfast.table.packing import pack
from steerfast.table.table import Table


@dataclass(frozen=True)
class Branch:
    """One row of the batch: a prompt under plans that have done the same so far."""

    prompt: int
    plans: tuple[int, ...]


class RowRoute(NamedTuple):
    """Slot and gain of each token of the rows, [rows x tokens] int32 and float32, as ``reference.Steering`` has them."""

    slot: Tensor
    gain: Tensor


class Branches:
    """Plans in a table of their own, and the prompts they run over.

    closed: sites that the model does not have, and why.
    Raises ValueError for a plan that does not fit the model, or has a condition.
    """

    def __init__(
        self,
        plans: Sequence[Plan | None],
        layers: int,
        width: int,
        device: torch.device,
        closed: Mapping[int, str],
    ) -> None:
        self.table = _table_for(plans, layers, width, device)
        self.table.closed = closed
        self.entries = [None if plan is None else self.table.acquire(plan) for plan in plans]
        self._records = self.table.records.cpu().numpy()
        self._acting = [
            frozenset(site for phase in entry.phases for site in phase.sites)
            if entry
            else frozenset()
            for entry in self.entries
        ]
        # Plans that ask where a prompt ends, so that what they do differs from prompt to prompt.
        self._by_prompt = [
            entry is not None and bool(entry.lowered.origins or entry.plan.schedule)
            for entry in self.entries
        ]
        self.sites = sorted(frozenset[int]().union(*self._acting))
        self.begin([])

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """The prompts that branches are of from now on."""
        self._prompts = prompts
        self.lengths = [len(prompt) for prompt in prompts]
        self._itineraries: dict[tuple[int, int], Itinerary] = {}
        self._splits: dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]] = {}

    def act(self, plans: Sequence[int], sites: Sequence[int]) -> bool:
        """Whether any of the plans steers at any of the sites."""
        return any(site in self._acting[plan] for plan in plans for site in sites)

    def split(self, row: Branch, site: int) -> list[tuple[int, ...]]:
        """A row's plans, in groups that do the same at a site."""
        plans = row.plans
        if len(plans) == 1 or not self.act(plans, (site,)):
            return [plans]
        key = (site, plans)
        if key not in self._splits:
            groups: dict[object, list[int]] = {}
            for plan in plans:
                groups.setdefault(self._does(plan, site, row.prompt), []).append(plan)
            split = [tuple(group) for group in groups.values()]
            if any(self._by_prompt[plan] for plan in plans):
                return split
            self._splits[key] = split
        return self._splits[key]

    def _does(self, plan: int, site: int, prompt: int) -> object:
        """What a plan does at a site over a prompt, by content: equal values mean equal steering."""
        if site not in self._acting[plan]:
            return None
        course = self._itinerary(plan, prompt)
        records = self._records[site]
        steps: list[tuple[int, bytes | None]] = [(0, None)]
        for start, slot in zip(course.starts, course.slots, strict=True):
            idle = slot == UNSTEERED or (records[slot, 0] == UNSTEERED and records[slot, 3] == 0)
            does = None if idle else records[slot].tobytes()
            if does != steps[-1][1]:
                steps.append((start, does))
        return (tuple(steps), course.gain_at, course.gains) if len(steps) > 1 else None

    def _itinerary(self, plan: int, prompt: int) -> Itinerary:
        entry = self.entries[plan]
        if entry is None:
            return NOWHERE
        key = (plan, prompt if self._by_prompt[plan] else -1)
        if key not in self._itineraries:
            tokens = self._prompts[prompt]
            self._itineraries[key] = itinerary(entry, len(tokens), tokens)
        return self._itineraries[key]

    def route(self, rows: Sequence[Branch], tokens: int, last_only: bool) -> RowRoute:
        """The route of rows of ``tokens`` tokens, or of the last real token of each. Padding is not steered."""
        slots = np.full((len(rows), tokens), UNSTEERED, dtype=np.int32)
        gains = np.ones((len(rows), tokens), dtype=np.float32)
        for index, row in enumerate(rows):
            length = self.lengths[row.prompt]
            course = self._itinerary(row.plans[0], row.prompt)
            for start, slot in zip(course.starts, course.slots, strict=True):
                slots[index, start:length] = slot
            if course.gain_at:
                gains[index, :length] = np.interp(np.arange(length), course.gain_at, course.gains)
        if last_only:
            at = [self.lengths[row.prompt] - 1 for row in rows]
            slots, gains = slots[np.arange(len(rows)), at], gains[np.arange(len(rows)), at]
        device = self.table.device
        return RowRoute(
            torch.from_numpy(slots.reshape(-1)).to(device),
            torch.from_numpy(gains.reshape(-1)).to(device),
        )


def _table_for(
    plans: Sequence[Plan | None], layers: int, width: int, device: torch.device
) -> Table:
    """A table with room for exactly these plans."""
    distinct = {plan.digest: plan for plan in plans if plan is not None}
    for plan in distinct.values():
        if plan.condition is not None:
            raise ValueError(
                f"plan {plan.digest[:8]} has a condition, and a forked pass takes none: each row would wait for its own "
                "prompt; run it with attach(model).use(plan)"
            )
    packed = [pack(plan, lower(plan).phases) for plan in distinct.values()]
    return Table(
        layers,
        width,
        slots=max(1, sum(one.cost.slots for one in packed)),
        bank_rows=max(1, len({key for one in packed for key in one.keys})),
        programs=len({key for one in packed for key in one.programs}),
        device=device,
    )
