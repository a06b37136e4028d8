"""Table: the plans in use, packed into fixed tensors that the kernels read.

A slot holds one phase of a plan. Plans are counted: the same plan acquired twice shares its slots, a
plan nobody holds stays until its room is needed (least recently used first), and a slot in use is
never rewritten. Directions and programs are shared by content, across plans and layers. The tensors
keep their addresses, so compiled code and captured graphs see a change.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.lowering import Phase, SiteSteering, Start, lower
from steerfast.plan import Plan
from steerfast.pool import Pool
from steerfast.records import MAX_READS, READ_WIDTH, RECORD_WIDTH, Op, Read
from steerfast.sites import site_count

UNSTEERED = -1


@dataclass
class Entry:
    """One plan in the table: the slot of each phase (-1 where nothing is active), what it shares of
    bank and programs, and who holds it."""

    plan: Plan
    phases: tuple[Phase, ...]
    slots: tuple[int, ...]
    rows: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)
    holders: int = 0

    @property
    def starts(self) -> tuple[Start, ...]:
        """The start of each phase, ascending."""
        return tuple(phase.start for phase in self.phases)


class Table:
    """Room for ``slots`` phases of plans over ``bank_rows`` directions and ``programs``, on one device.

    records: [sites, slots, 4] int32, reads: [programs, 16, 12] int32 and bank: [bank_rows, D] float32,
    see ``reference.Steering``. With ``programs=0`` only constant terms fit, and kernels that know no
    others run.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        *,
        slots: int = 64,
        bank_rows: int | None = None,
        programs: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1:
            raise ValueError(f"a table needs at least one slot, got {slots}")
        self.num_layers, self.hidden_size = num_layers, hidden_size
        rows = slots * (num_layers + 1) if bank_rows is None else bank_rows
        programs = slots * (num_layers + 1) if programs is None else programs
        with torch.inference_mode(False):  # else the tensors could never be written outside of it
            shape = (site_count(num_layers), slots, RECORD_WIDTH)
            self.records = torch.zeros(shape, dtype=torch.int32, device=device)
            self.records[..., 0] = UNSTEERED
            self.reads = torch.zeros(
                (programs, MAX_READS, READ_WIDTH), dtype=torch.int32, device=device
            )
            self.bank = torch.zeros((rows, hidden_size), dtype=torch.float32, device=device)
        self.version = 0
        # By digest, least recently used first.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._free_slots = list(range(slots - 1, -1, -1))
        self._rows, self._programs = Pool(rows), Pool(programs)

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
            self.records, self.reads = self.records.to(device), self.reads.to(device)
            self.bank = self.bank.to(device)

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
        packed = [_pack(phase) for phase in phases]
        self._make_room(packed)
        slots = tuple(self._free_slots.pop() if sites else UNSTEERED for sites in packed)
        entry = Entry(plan, phases, slots)
        with torch.inference_mode(False), torch.no_grad():
            for slot, sites in zip(slots, packed, strict=True):
                for site, needs in sites.items():
                    record = torch.tensor(self._record(entry, needs), dtype=torch.int32)
                    self.records[site, slot].copy_(record)
        self.version += 1
        self._entries[plan.digest] = entry
        return entry

    def _record(self, entry: Entry, needs: _Needs) -> list[int]:
        """Places what a site's steering needs; returns its record."""

        def row_of(key: bytes | None) -> int:
            if key is None:
                return -1
            direction = needs.rows[key]
            entry.rows.append(self._rows.take(key, lambda row: self.bank[row].copy_(direction)))
            return entry.rows[-1]

        delta = row_of(needs.delta)
        if not needs.reads:
            return [delta, needs.finish, 0, 0]
        words = [
            replace(read, source=row_of(source), target=row_of(target)).words()
            for read, source, target in needs.reads
        ]
        words += [Read(Op.KEY).words()] * (MAX_READS - len(words))
        content = torch.tensor(words, dtype=torch.int32)
        program = self._programs.take(needs.program, lambda place: self.reads[place].copy_(content))
        entry.programs.append(program)
        return [delta, needs.finish, program, len(needs.reads)]

    def _make_room(self, packed: list[dict[int, _Needs]]) -> None:
        """Drops idle plans, least recently used first, until everything fits; or an error, and none."""
        every = [needs for sites in packed for needs in sites.values()]
        slots = sum(bool(sites) for sites in packed)
        rows = {key for needs in every for key in needs.rows}
        programs = {needs.program for needs in every if needs.reads}
        idle = [entry for entry in self._entries.values() if entry.holders == 0]
        held = [entry for entry in self._entries.values() if entry.holders > 0]
        self._check_room(held, slots, rows, programs)
        for entry in idle:
            if (
                len(self._free_slots) >= slots
                and self._rows.free >= self._rows.missing(rows)
                and self._programs.free >= self._programs.missing(programs)
            ):
                return
            self._evict(entry)

    def _check_room(
        self, held: list[Entry], slots: int, rows: set[bytes], programs: set[bytes]
    ) -> None:
        """SteerfastError if the plan would not fit even beside the plans in use alone."""
        used_slots = sum(slot != UNSTEERED for entry in held for slot in entry.slots)
        used_rows = {row for entry in held for row in entry.rows}
        used_programs = {program for entry in held for program in entry.programs}
        wanted = {
            "slots": (slots, self.records.shape[1], used_slots),
            "bank_rows": (
                self._rows.missing(rows, used_rows),
                self._rows.capacity,
                len(used_rows),
            ),
            "programs": (
                self._programs.missing(programs, used_programs),
                self._programs.capacity,
                len(used_programs),
            ),
        }
        if any(need > capacity - used for need, capacity, used in wanted.values()):
            needed = ", ".join(f"{need} {what}" for what, (need, _, _) in wanted.items())
            room = ", ".join(
                f"{what}={capacity} ({capacity - used} free)"
                for what, (_, capacity, used) in wanted.items()
            )
            raise SteerfastError(
                f"the table is full: the plan needs {needed} beside {len(held)} plans in use, but it was "
                f"made with {room}; attach with more"
            )

    def _evict(self, entry: Entry) -> None:
        del self._entries[entry.plan.digest]
        used = [slot for slot in entry.slots if slot != UNSTEERED]
        nothing = torch.tensor([UNSTEERED, 0, 0, 0], dtype=torch.int32)
        with torch.inference_mode(False), torch.no_grad():
            for slot in used:
                self.records[:, slot].copy_(nothing)
        self._free_slots += used
        for row in entry.rows:
            self._rows.give_back(row)
        for program in entry.programs:
            self._programs.give_back(program)
        self.version += 1


@dataclass(frozen=True)
class _Needs:
    """A site's steering by content: rows {key: direction}, and keys where places will stand."""

    finish: int
    rows: dict[bytes, Tensor]
    delta: bytes | None
    reads: list[tuple[Read, bytes | None, bytes | None]]

    @property
    def program(self) -> bytes:
        return repr(self.reads).encode()


def _pack(phase: Phase) -> dict[int, _Needs]:
    return {site: _needs(steering) for site, steering in phase.sites.items()}


def _needs(steering: SiteSteering) -> _Needs:
    rows: dict[bytes, Tensor] = {}

    def key_of(direction: Tensor | None) -> bytes | None:
        if direction is None:
            return None
        key = hashlib.sha256(direction.numpy().tobytes()).digest()
        rows[key] = direction
        return key

    delta = key_of(steering.delta)
    reads = [(read, key_of(source), key_of(target)) for read, source, target in steering.reads]
    return _Needs(steering.finish, rows, delta, reads)
