"""What a plan needs of a table, by content: directions and programs that equal ones share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.errors import PlanTooLargeError
from steerfast.ops.records import Read
from steerfast.plans.condition import Test
from steerfast.plans.plan import Plan
from steerfast.table.lowering import Phase, SiteSteering


class Direction(NamedTuple):
    """A future row of the bank: its content's key, and [D] float32."""

    key: bytes
    values: Tensor


class PackedRead(NamedTuple):
    """A read whose source and target are not placed in the bank yet, or None."""

    read: Read
    source: Direction | None
    target: Direction | None


@dataclass(frozen=True)
class PackedSite:
    """One site of one phase: what its record will say."""

    finish: int
    delta: Direction | None
    reads: tuple[PackedRead, ...]

    @property
    def program(self) -> bytes:
        """The key of its program: reads with keys where bank rows will stand."""
        words = [
            (one.read, one.source and one.source.key, one.target and one.target.key)
            for one in self.reads
        ]
        return repr(words).encode()

    @property
    def directions(self) -> Iterable[Direction]:
        for one in (self.delta, *(d for read in self.reads for d in (read.source, read.target))):
            if one is not None:
                yield one


@dataclass(frozen=True)
class Packed:
    """A plan: {site: PackedSite} of each phase, and the unit key of each test of its condition."""

    phases: tuple[dict[int, PackedSite], ...]
    keys: tuple[Direction, ...]

    @property
    def sites(self) -> list[PackedSite]:
        return [site for phase in self.phases for site in phase.values()]

    @property
    def slots(self) -> int:
        """How many slots it takes: phases in which nothing acts need none."""
        return sum(bool(phase) for phase in self.phases)

    @property
    def directions(self) -> set[bytes]:
        every = {one.key for site in self.sites for one in site.directions}
        return every | {key.key for key in self.keys}

    @property
    def programs(self) -> set[bytes]:
        return {site.program for site in self.sites if site.reads}


class Cost(NamedTuple):
    """What a plan takes of a table, or a table has in all: slots for phases, bank rows for directions, programs."""

    slots: int
    rows: int
    programs: int


def pack(plan: Plan, phases: Sequence[Phase], room: Cost | None = None) -> Packed:
    """The needs of a lowered plan.

    room: what there is in all. A plan that needs more is a PlanTooLargeError: of slots before anything is computed, as
    terms after several sequences, whose order is not known, act in every combination of them; of the rest as soon as
    that is seen, so that refusing it takes no longer than filling the table would.
    """
    slots = sum(bool(phase.sites) for phase in phases)
    if room is not None and slots > room.slots:
        raise PlanTooLargeError(
            "slots",
            f"the plan needs {slots} slots, one for each combination of its selectors, and there are {room.slots} in all: "
            "use fewer ranges, or fewer sequences to act after",
        )
    tests = () if plan.condition is None else plan.condition.tests
    keys = tuple(_unit_key(test) for test in tests)
    rows, programs = {key.key for key in keys}, set()
    known: dict[int, PackedSite] = {}  # equal steering is one object, and packed once
    packed = []
    for phase in phases:
        sites = {}
        for site, steering in phase.sites.items():
            if id(steering) not in known:
                known[id(steering)] = one = _site(steering)
                rows |= {direction.key for direction in one.directions}
                programs |= {one.program} if one.reads else set()
                _check(rows, programs, room)
            sites[site] = known[id(steering)]
        packed.append(sites)
    return Packed(tuple(packed), keys)


def _check(rows: set[bytes], programs: set[bytes], room: Cost | None) -> None:
    if room is None:
        return
    for what, need, there in (
        ("rows", len(rows), room.rows),
        ("programs", len(programs), room.programs),
    ):
        if need > there:
            raise PlanTooLargeError(
                what,
                f"the plan needs more than the {there} {what} that there are in all: use fewer vectors or layers, or "
                "selectors that overlap less",
            )


def _site(steering: SiteSteering) -> PackedSite:
    reads = []
    for read, source, target in steering.reads:
        reading = _direction(source)  # what is read is what is written, often
        reads.append(PackedRead(read, reading, reading if target is source else _direction(target)))
    return PackedSite(steering.finish, _direction(steering.delta), tuple(reads))


def _direction(values: Tensor | None) -> Direction | None:
    if values is None:
        return None
    return Direction(hashlib.sha256(values.numpy().tobytes()).digest(), values)


def _unit_key(test: Test) -> Direction:
    key = test.key.at(test.layer).double()
    direction = _direction((key / torch.linalg.vector_norm(key)).to(torch.float32))
    assert direction is not None
    return direction
