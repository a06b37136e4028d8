"""Table: the plans in use, packed into fixed tensors that the kernels read.

A slot holds one phase of a plan. Plans are counted: the same plan acquired twice shares its slots, a
plan nobody holds stays until its room is needed (least recently used first), and a slot in use is
never rewritten. The tensors keep their addresses, so compiled code and captured graphs see a change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from steerfast.errors import SteerfastError
from steerfast.lowering import Phase, Start, lower, site_count
from steerfast.plan import Plan
from steerfast.reference import RECORD_WIDTH

UNSTEERED = -1


@dataclass
class Entry:
    """One plan in the table: the slot of each phase (-1 where nothing is active), and who holds it."""

    plan: Plan
    phases: tuple[Phase, ...]
    slots: tuple[int, ...]
    rows: tuple[int, ...]
    holders: int = 0

    @property
    def starts(self) -> tuple[Start, ...]:
        """The start of each phase, ascending."""
        return tuple(phase.start for phase in self.phases)


class Table:
    """Room for ``slots`` phases of plans over ``bank_rows`` deltas, on one device.

    records: [sites, slots, 4] int32 and bank: [bank_rows, D] float32, see ``reference.Steering``.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        *,
        slots: int = 64,
        bank_rows: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1:
            raise ValueError(f"a table needs at least one slot, got {slots}")
        self.num_layers, self.hidden_size = num_layers, hidden_size
        rows = slots * (num_layers + 1) if bank_rows is None else bank_rows
        with torch.inference_mode(False):  # else the tensors could never be written outside of it
            shape = (site_count(num_layers), slots, RECORD_WIDTH)
            self.records = torch.zeros(shape, dtype=torch.int32, device=device)
            self.records[..., 0] = UNSTEERED
            self.bank = torch.zeros((rows, hidden_size), dtype=torch.float32, device=device)
        self.version = 0
        self._entries: OrderedDict[str, Entry] = (
            OrderedDict()
        )  # by digest, least recently used first
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free_rows = list(range(rows - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        return self.records.device

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every plan in the table, held or idle."""
        return tuple(self._entries.values())

    def to(self, device: torch.device) -> None:
        """Move the tensors; captured graphs that read the old ones must be captured again."""
        with torch.inference_mode(False):
            self.records, self.bank = self.records.to(device), self.bank.to(device)

    def check(self, plan: Plan) -> None:
        """ValueError if the plan does not fit the model: hidden size or layers."""
        if plan.hidden_size != self.hidden_size:
            names = ", ".join(sorted({term.vector.name for term in plan.terms}))
            raise ValueError(
                f"plan of {names} is made for hidden size {plan.hidden_size}, but this model has "
                f"{self.hidden_size}; extract the vector from this model"
            )
        beyond = [layer for layer in plan.layers if layer >= self.num_layers]
        if beyond:
            raise ValueError(
                f"plan names layer {beyond[0]}, but this model has layers 0..{self.num_layers - 1}"
            )

    def acquire(self, plan: Plan) -> Entry:
        """All slots of a plan, or an error and nothing changed. Release it when done.

        Raises ValueError for a plan that does not fit, SteerfastError when plans in use fill the table.
        """
        entry = self._entries.get(plan.digest)
        if entry is None:
            self.check(plan)
            entry = self._insert(plan)
        self._entries.move_to_end(plan.digest)
        entry.holders += 1
        return entry

    def release(self, entry: Entry) -> None:
        """Give a plan back; its slots are reused only when their room is needed."""
        assert entry.holders > 0, "released more often than acquired"
        entry.holders -= 1

    def _insert(self, plan: Plan) -> Entry:
        phases = lower(plan)
        slots_needed = sum(bool(phase.deltas) for phase in phases)
        rows_needed = sum(len(phase.deltas) for phase in phases)
        self._make_room(slots_needed, rows_needed)
        slots: list[int] = []
        rows: list[int] = []
        for phase in phases:
            slots.append(self._free_slots.pop() if phase.deltas else UNSTEERED)
            taken = [self._free_rows.pop() for _ in phase.deltas]
            self._write(slots[-1], phase, taken)
            rows += taken
        entry = Entry(plan, phases, tuple(slots), tuple(rows))
        self._entries[plan.digest] = entry
        return entry

    def _make_room(self, slots_needed: int, rows_needed: int) -> None:
        idle = [entry for entry in self._entries.values() if entry.holders == 0]
        slots = len(self._free_slots) + sum(slot != UNSTEERED for e in idle for slot in e.slots)
        rows = len(self._free_rows) + sum(len(entry.rows) for entry in idle)
        if slots < slots_needed or rows < rows_needed:
            held = len(self._entries) - len(idle)
            raise SteerfastError(
                f"the table is full: the plan needs {slots_needed} slots and {rows_needed} bank rows, "
                f"{slots} and {rows} are free beside {held} plans in use; attach with more "
                f"(slots={self.records.shape[1]}, bank_rows={self.bank.shape[0]})"
            )
        for entry in idle:
            if len(self._free_slots) >= slots_needed and len(self._free_rows) >= rows_needed:
                return
            self._evict(entry)

    def _evict(self, entry: Entry) -> None:
        del self._entries[entry.plan.digest]
        used = [slot for slot in entry.slots if slot != UNSTEERED]
        with torch.inference_mode(False), torch.no_grad():
            for slot in used:
                self.records[:, slot, 0] = UNSTEERED
        self._free_slots += used
        self._free_rows += entry.rows
        self.version += 1

    def _write(self, slot: int, phase: Phase, rows: Iterable[int]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for (site, lowered), row in zip(phase.deltas.items(), rows, strict=True):
                self.bank[row].copy_(lowered.delta)
                record = [row, lowered.finish, 0, 0]
                self.records[site, slot].copy_(torch.tensor(record, dtype=torch.int32))
        self.version += 1
