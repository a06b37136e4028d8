"""What a plan needs of a table, by content, as numbers: all that is left to do with them is to copy them.

Directions and programs are known by what they hold, so that equal ones are shared, also by plans that know nothing of
each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerfast.errors import PlanTooLargeError
from steerfast.ops.records import READ_WIDTH, Read
from steerfast.plans.condition import Test
from steerfast.plans.plan import Plan
from steerfast.table.lowering import Phase, SiteSteering

SITE_WIDTH = 5  # of Packed.sites
PHASE = 0  # of a line there
NONE = -1  # no direction, no program
_NO_CONTENT = bytes(32)
SOURCE, TARGET = 1, 2  # of the words of a read

Ints = NDArray[np.int32]


class Cost(NamedTuple):
    """What a plan takes of a table, or a table has in all: slots for phases, bank rows for directions, programs."""

    slots: int
    rows: int
    programs: int


@dataclass(frozen=True, eq=False)
class Packed:
    """What some phases of a plan need.

    phases: how many. sites: [n, 5] int32, by phase: (phase, site, finish, delta, program); a delta is a row of
        ``rows``, -1 for none.
    reads: [r, 12] int32, the words of all programs one behind another, whose source and target are rows of ``rows``;
        ends: [p] int32, where in them each program ends.
    rows: [V, D] float32, the directions. keys, programs: the content of each row and program, hashed.
    tests: the row of each test's unit key, of a condition.
    """

    phases: int
    sites: Ints
    reads: Ints
    ends: Ints
    rows: Tensor
    keys: tuple[bytes, ...]
    programs: tuple[bytes, ...]
    tests: tuple[int, ...] = ()

    @cached_property
    def steered(self) -> tuple[bytes, ...]:
        """The content of each phase, hashed: what is done at which site. Empty where nothing is."""
        content = [bytearray() for _ in range(self.phases)]
        for phase, site, finish, delta, program in self.sites.tolist():
            content[phase] += b"%d:%d:" % (site, finish)
            content[phase] += _NO_CONTENT if delta == NONE else self.keys[delta]
            content[phase] += _NO_CONTENT if program == NONE else self.programs[program]
        return tuple(one and hashlib.sha256(one).digest() for one in map(bytes, content))

    @cached_property
    def cost(self) -> Cost:
        """What it takes: phases in which nothing acts need no slot."""
        slots = len(np.unique(self.sites[:, PHASE]))
        return Cost(slots, len(set(self.keys)), len(set(self.programs)))


def contents(reads: Ints, ends: Ints, keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """What each program holds, hashed: its words, with keys of directions where rows stand."""
    words = reads.copy()
    words[:, [SOURCE, TARGET]] = 0
    found, begin = [], 0
    for end in ends.tolist():
        content = hashlib.sha256(words[begin:end].tobytes())
        for row in reads[begin:end, [SOURCE, TARGET]].reshape(-1).tolist():
            content.update(_NO_CONTENT if row == NONE else keys[row])
        found.append(content.digest())
        begin = end
    return tuple(found)


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
    build = _Packing(room)
    tests = () if plan.condition is None else plan.condition.tests
    keys = tuple(build.row(_unit_key(test)) for test in tests)
    for number, phase in enumerate(phases):
        for site, steering in phase.sites.items():
            build.site(number, site, steering)
    return build.packed(len(phases), plan.hidden_size, keys)


class _Packing:
    """Directions and programs as they come, each once."""

    def __init__(self, room: Cost | None) -> None:
        self._room = room
        self._rows: dict[bytes, int] = {}
        self._directions: list[Tensor] = []
        self._programs: dict[tuple[Any, ...], int] = {}
        self._words: list[list[int]] = []
        self._ends: list[int] = []
        self._sites: list[tuple[int, ...]] = []
        # Equal steering is one object, and packed once; held, so that no other takes its place.
        self._known: dict[int, tuple[SiteSteering, tuple[int, int]]] = {}

    def site(self, phase: int, site: int, steering: SiteSteering) -> None:
        known = self._known.get(id(steering))
        if known is None:
            places = self.row(steering.delta), self._program(steering.reads)
            known = self._known[id(steering)] = steering, places
            self._check()
        self._sites.append((phase, site, steering.finish, *known[1]))

    def row(self, values: Tensor | None) -> int:
        if values is None:
            return NONE
        key = hashlib.sha256(values.numpy().tobytes()).digest()
        row = self._rows.setdefault(key, len(self._rows))
        if row == len(self._directions):
            self._directions.append(values)
        return row

    def _program(self, reads: Sequence[tuple[Read, Tensor | None, Tensor | None]]) -> int:
        if not reads:
            return NONE
        words = []
        for read, source, target in reads:
            line = read.words()
            line[SOURCE] = self.row(source)  # what is read is what is written, often
            line[TARGET] = line[SOURCE] if target is source else self.row(target)
            words.append(line)
        key = tuple(map(tuple, words))
        place = self._programs.setdefault(key, len(self._programs))
        if place == len(self._ends):
            self._words += words
            self._ends.append(len(self._words))
        return place

    def _check(self) -> None:
        if self._room is None:
            return
        for what, need, there in (
            ("rows", len(self._rows), self._room.rows),
            ("programs", len(self._ends), self._room.programs),
        ):
            if need > there:
                raise PlanTooLargeError(
                    what,
                    f"the plan needs more than the {there} {what} that there are in all: use fewer vectors or layers, or "
                    "selectors that overlap less",
                )

    def packed(self, phases: int, width: int, tests: tuple[int, ...]) -> Packed:
        rows = torch.stack(self._directions) if self._directions else torch.empty(0, width)
        sites = np.array(self._sites, np.int32).reshape(-1, SITE_WIDTH)
        reads = np.array(self._words, np.int32).reshape(-1, READ_WIDTH)
        ends, keys = np.array(self._ends, np.int32), tuple(self._rows)
        return Packed(phases, sites, reads, ends, rows, keys, contents(reads, ends, keys), tests)


def _unit_key(test: Test) -> Tensor:
    key = test.key.direction(test.layer).double()
    unit: Tensor = (key / torch.linalg.vector_norm(key)).to(torch.float32)
    return unit
