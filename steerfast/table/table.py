"""Table: the plans in use, packed into fixed tensors that the kernels read.

A slot holds one phase of a plan. Plans are counted: the same plan acquired twice shares its slots, a
plan nobody holds stays until its room is needed (least recently used first), and a slot in use is
never rewritten. Directions and programs are shared by content, across plans and layers. The tensors
keep their addresses, so compiled code and captured graphs see a change.

Any thread may acquire and release. What forwards of other threads read is not touched by that (``table.lease``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from steerfast.errors import TableFullError
from steerfast.ops.records import RECORD_WIDTH
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_count, site_name
from steerfast.table.entry import UNSTEERED, Entry, Held, used
from steerfast.table.layout import records_of, words_of, write
from steerfast.table.lowering import Lowered, lower
from steerfast.table.packing import NONE, PHASE, Cost, Packed, pack
from steerfast.table.pool import Pool
from steerfast.table.room import NAMES, check_room, room, within
from steerfast.table.shown_reads import ShownReads


class Table:
    """Room for ``slots`` phases of plans over ``bank_rows`` directions and ``programs``, on one device.

    records: [sites, slots, 4] int32, reads: [programs, 16, 12] int32 and bank: [bank_rows, D] float32,
    see ``reference.Steering``. With ``programs=0`` only constant terms fit, and kernels that know no
    others run; with ``reads_late`` those run until a plan has others. room: these three numbers.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        *,
        slots: int = 64,
        bank_rows: int | None = None,
        programs: int | None = None,
        reads_late: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.room = room(num_layers, slots, bank_rows, programs)
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.lock = threading.Condition(threading.RLock())
        slots, rows, reading = self.room
        with torch.inference_mode(False):  # else the tensors could never be written outside of it
            shape = (site_count(num_layers), slots, RECORD_WIDTH)
            self.records = torch.zeros(shape, dtype=torch.int32, device=device)
            self.records[..., 0] = UNSTEERED
            self.shown_reads = ShownReads(reading, reads_late, device, self.lock)
            self.bank = torch.zeros((rows, hidden_size), dtype=torch.float32, device=device)
            self.site_records = self.records.unbind(0)
        self.closed: Mapping[int, str] = {}  # sites that the model does not have, and why
        self.version = 0
        self._frozen: tuple[int, Tensor, Tensor] | None = None
        # By key, least recently used first.
        self._entries: OrderedDict[str, Held] = OrderedDict()
        self._lowered: WeakValueDictionary[str, Lowered] = WeakValueDictionary()
        self._free_slots = list(range(slots - 1, -1, -1))
        self._rows, self._programs = Pool(rows), Pool(reading)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the same room, and no plans: nobody could release them."""
        sizes: dict[str, Any] = dict(zip(NAMES, self.room, strict=True), device=self.device)
        made = partial(Table, reads_late=self.shown_reads.late, **sizes)
        return made, (self.num_layers, self.hidden_size), {"closed": self.closed}

    @property
    def device(self) -> torch.device:
        return self.records.device

    @property
    def reads(self) -> Tensor:
        """[programs, 16, 12] int32, as kernels see it."""
        return self.shown_reads.now

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every plan in the table, held or idle."""
        with self.lock:
            return tuple(one for one in self._entries.values() if isinstance(one, Entry))

    @property
    def slots_in_use(self) -> int:
        """How many slots somebody holds; the rest is free, or kept for plans that may come again."""
        with self.lock:
            return used(self._held()).slots

    def to(self, device: torch.device) -> None:
        """Move the tensors; captured graphs that read the old ones must be captured again."""
        with self.lock, torch.inference_mode(False):
            self.records, self.bank = self.records.to(device), self.bank.to(device)
            self.shown_reads.to(device)
            self.site_records = self.records.unbind(0)

    def frozen(self) -> tuple[Tensor, Tensor]:
        """Copies of (reads, bank) as they are now; the same ones until a plan comes or goes."""
        with self.lock:
            if self._frozen is None or self._frozen[0] != self.version:
                self._frozen = (self.version, self.reads.clone(), self.bank.clone())
            return self._frozen[1:]

    def check(self, plan: Plan) -> None:
        """ValueError if the plan does not fit the model: hidden size, layers or sites."""
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
        for site in sorted(plan.sites & self.closed.keys() if self.closed else ()):
            raise ValueError(f"plan names {site_name(site)}, {self.closed[site]}; name resid_post")

    def acquire(self, plan: Plan, part: Lowered | None = None) -> Entry:
        """All slots of a plan, or an error and nothing changed. Release it when done.

        part: what is needed of it, if that is known: those who need the same part share it (``Lowered.along``).
        Raises ValueError for a plan that does not fit the model, TableFullError for one for which there is no room
        beside the plans in use.
        """
        key = plan.digest if part is None else part.key(plan)
        held = self._held_once_more(key)
        if held is None:
            lowered, packed = self._packed(plan, part)  # may take long: without the lock
            held = self._held_once_more(key, packed, partial(Entry, plan=plan, lowered=lowered))
        assert isinstance(held, Entry)
        return held

    def hold(self, key: str, packed: Callable[[], Packed]) -> Held:
        """As ``acquire``, of numbers that were packed elsewhere and fit this table. key: whatever tells them from others;
        packed: called where the table does not have them."""
        held = self._held_once_more(key)
        if held is None:
            held = self._held_once_more(key, packed(), Held)
        assert held is not None
        return held

    def lowered(self, plan: Plan) -> Lowered:
        """``lower(plan)``, of a plan that is here as it was made for it."""
        found = self._lowered.get(plan.digest)
        return lower(plan) if found is None else replace(found, part=None)

    def _held_once_more(
        self, key: str, packed: Packed | None = None, kind: Callable[..., Held] = Held
    ) -> Held | None:
        """What stands under a key, or is put there; None where there is neither."""
        with self.lock:
            if key not in self._entries:
                if packed is None:
                    return None
                self._make_room(packed)
                self._insert(key, packed, kind)
            held = self._entries[key]
            self._entries.move_to_end(key)
            held.holders += 1
            return held

    def check_room(self, plan: Plan, part: Lowered | None = None) -> None:
        """TableFullError for a plan that this table has no room for, whoever else is there; ValueError for one that does
        not fit the model."""
        key = plan.digest if part is None else part.key(plan)
        with self.lock:
            known = key in self._entries
        if not known:
            packed = self._packed(plan, part)[1]
            with self.lock:
                self._check_room([], packed)

    def _packed(self, plan: Plan, part: Lowered | None) -> tuple[Lowered, Packed]:
        """What is to be written. Nothing is computed of a plan that needs more than there is in all."""
        self.check(plan)
        with self.lock:
            taken = used(self._held())
        lowered = self.lowered(plan) if part is None else part
        with within(taken, self.room):
            packed = pack(plan, lowered.phases, self.room)
        lowered.forget()
        return lowered, packed

    def release(self, entry: Held) -> None:
        """Give a plan back; its slots are reused only when their room is needed."""
        with self.lock:
            assert entry.holders > 0, "released more often than acquired"
            entry.holders -= 1
            if entry.holders == 0 and self.device.type == "cuda":
                entry.last_use = torch.cuda.Event()  # type: ignore[no-untyped-call]
                # Of the device where forwards run, which need not be the current one.
                entry.last_use.record(torch.cuda.current_stream(self.device))

    def exchange(self, entry: Entry, plan: Plan) -> Entry:
        """Release one plan and acquire another, or an error and nothing changed.

        In a table that is full otherwise, and with no other holder, the new plan takes the old one's very
        place. The kernels of a step that is under way read what they were launched with: writes follow them in
        the order of the stream.
        """
        try:
            new = self.acquire(plan)
        except TableFullError:
            if entry.holders > 1:
                raise
            lowered, packed = self._packed(plan, None)
            with self.lock:
                self._check_room([one for one in self._held() if one is not entry], packed)
                self.release(entry)
                kind = partial(Entry, plan=plan, lowered=lowered)
                return cast("Entry", self._held_once_more(plan.digest, packed, kind))
        self.release(entry)
        return new

    def _held(self) -> list[Held]:
        return [entry for entry in self._entries.values() if entry.holders > 0]

    def _insert(self, key: str, packed: Packed, kind: Callable[..., Held]) -> None:
        """Copy what is new; the rest is there, and gets a holder more."""
        rows, new_rows = self._rows.take(packed.keys)
        programs, new_programs = self._programs.take(packed.programs)
        steered = set(packed.sites[:, PHASE].tolist())
        slots = tuple(
            self._free_slots.pop() if phase in steered else UNSTEERED
            for phase in range(packed.phases)
        )
        place_of = np.array([*rows, NONE], np.int32)  # of NONE, which is -1, the last
        with torch.inference_mode(False), torch.no_grad():
            records = records_of(packed, place_of, np.array(programs, np.int32), len(self.records))
            filled = [phase for phase, slot in enumerate(slots) if slot != UNSTEERED]
            places = [slots[phase] for phase in filled]
            write(self.records.transpose(0, 1), places, torch.from_numpy(records[filled]))
            write(self.bank, list(new_rows), packed.rows[list(new_rows.values())])
            words = words_of(packed, place_of, list(new_programs.values()))
            write(self.shown_reads.whole, list(new_programs), torch.from_numpy(words))
        if programs:
            self.shown_reads.show()
        entry = kind(key=key, slots=slots, rows=rows, programs=programs)
        entry.keys = tuple(rows[test] for test in packed.tests)
        if isinstance(entry, Entry):
            self._lowered[entry.plan.digest] = entry.lowered
        self.version += 1
        self._entries[key] = entry

    def _make_room(self, packed: Packed) -> None:
        """Drops idle plans, least recently used first, until everything fits; or an error, and none."""
        self._check_room(self._held(), packed)
        for entry in [one for one in self._entries.values() if one.holders == 0]:
            if (
                len(self._free_slots) >= packed.cost.slots
                and self._rows.free >= self._rows.missing(packed.keys)
                and self._programs.free >= self._programs.missing(packed.programs)
            ):
                return
            self._evict(entry)

    def _check_room(self, held: list[Held], packed: Packed) -> None:
        """TableFullError if the plan would not fit even beside the plans in use alone; or what ``shown_reads`` says."""
        if packed.programs:
            self.shown_reads.check()
        rows = {row for entry in held for row in entry.rows}
        programs = {program for entry in held for program in entry.programs}
        need = Cost(
            packed.cost.slots,
            self._rows.missing(packed.keys, rows),
            self._programs.missing(packed.programs, programs),
        )
        check_room(need, used(held), self.room, len(held))

    def _evict(self, entry: Held) -> None:
        if entry.last_use is not None:
            torch.cuda.current_stream(self.device).wait_event(entry.last_use)
        del self._entries[entry.key]
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
