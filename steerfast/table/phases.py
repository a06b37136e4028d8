"""Phases: the stretches of a request in each of which the same terms act, and the order in which it meets them.

Cuts (``steerfast.plans.selectors``) of one origin keep their order whatever the request, those of different origins do
not: position 5 may come before the prompt's end or after it, and of two sequences either may be the last. So a **state**
counts, for each origin, how many of its cuts have been passed. States in which the same terms act are one phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from steerfast.plans.plan import Plan
from steerfast.plans.selectors import Cut, First, span
from steerfast.plans.term import Term

MAX_SEGMENTS = 64  # stretches of one request's positions, each with its slot
MAX_STATES = 1024
START, PROMPT_END, LAST_PROMPT_TOKEN = Cut("start"), Cut("prompt_end"), Cut("prompt_end", -1)

Origin = Literal["start", "prompt_end"] | tuple[int, ...]
State = tuple[int, ...]
_Place = tuple[int, int]  # of a state, and the number there from which a cut has been passed
_ALWAYS, _NEVER = (-1, 0), (-1, 1)  # at the end of a state, where a 0 is put


class Acting(NamedTuple):
    """Who acts in a phase: terms, by their numbers, at sites above this one."""

    terms: tuple[int, ...]
    above: int = -1


@dataclass(frozen=True)
class Division:
    """How a plan's cuts divide any request. acting: who acts in each phase, in the order of the first of its states; of
    every state ``phase_of`` tells the phase, or -1: nothing acts."""

    origins: tuple[Origin, ...]
    offsets: tuple[tuple[int, ...], ...]
    acting: tuple[Acting, ...]
    phase_of: Mapping[State, int]

    def course(self, places: Mapping[Origin, int]) -> list[tuple[int, int]]:
        """[(first position, phase)], ascending, for a request with its origins at these positions."""
        passed = [
            tuple(places[origin] + offset for offset in offsets)
            for origin, offsets in zip(self.origins, self.offsets, strict=True)
        ]
        course: list[tuple[int, int]] = []
        for position in sorted({0, *(max(at, 0) for cuts in passed for at in cuts)}):
            state = tuple(sum(at <= position for at in cuts) for cuts in passed)
            phase = self.phase_of[state]
            if not course or course[-1][1] != phase:
                course.append((position, phase))
        return course

    def name(self, phase: int) -> str:
        """For a report: ``all``, ``prompt``, ``generated``, or the bounds of its states: ``5 <= t < P-1``."""
        states = (state for state, number in self.phase_of.items() if number == phase)
        return " or ".join(self._name(state) for state in states)

    def _name(self, state: State) -> str:
        if not self.origins:
            return "all"
        if self.origins == ("prompt_end",) and self.offsets == ((0,),):
            return ("prompt", "generated")[state[0]]
        parts = []
        for origin, each, count in zip(self.origins, self.offsets, state, strict=True):
            zero = {"start": "", "prompt_end": "P"}.get(str(origin), "S")
            bounds = [(f"{zero}{at:+d}" if at else zero) if zero else str(at) for at in each]
            left = f"{bounds[count - 1]} <= " if count else ""
            right = f" < {bounds[count]}" if count < len(bounds) else ""
            parts.append(f"{left}t{right}")
        return ", ".join(parts)


def check_positions(plan: Plan) -> None:
    """ValueError for a positional vector of more positions than there may be phases, before it is taken apart."""
    for term in plan.terms:
        if term.vector.positions is not None and isinstance(term.select, First):
            _check(term.select.count, 0)


def _check(cuts: int, states: int) -> None:
    """ValueError for a plan cut in more places than fit, or with more combinations of them (0: not counted)."""
    if cuts < MAX_SEGMENTS and states <= MAX_STATES:
        return
    many = f" ({states} combinations)" if states else ""
    raise ValueError(
        f"the plan's selectors cut positions in {cuts} places{many}; up to {MAX_SEGMENTS - 1} places "
        f"({MAX_STATES}) fit: use fewer ranges, fewer sequences, or fewer positions of a positional vector"
    )


def divide(plan: Plan, terms: Sequence[Term]) -> Division:
    """The phases of a plan, whose terms are these. ValueError where they are cut in more places than fit."""
    spans = [span(term.select) for term in terms]
    cuts = {cut for pair in spans for cut in pair if cut is not None}
    if plan.condition is not None:
        cuts |= {LAST_PROMPT_TOKEN, PROMPT_END}
    cuts -= {cut for cut in cuts if cut.origin == "start" and cut.offset <= 0}  # always passed
    origins = tuple(sorted({cut.origin for cut in cuts}, key=repr))
    offsets = tuple(
        tuple(sorted(cut.offset for cut in cuts if cut.origin == origin)) for origin in origins
    )
    _check(len(cuts), 0)  # first: of very many the combinations are a number of thousands of digits
    _check(len(cuts), math.prod(len(each) + 1 for each in offsets))
    where = {
        Cut(origin, offset): (place, count)
        for place, (origin, each) in enumerate(zip(origins, offsets, strict=True))
        for count, offset in enumerate(each, 1)
    }
    between = [
        (where.get(first, _ALWAYS), _NEVER if last is None else where.get(last, _ALWAYS))
        for first, last in spans
    ]
    phases: dict[Acting, int] = {}
    phase_of: dict[State, int] = {}
    for state in product(*(range(len(each) + 1) for each in offsets)):
        acting = _acting(plan, between, where, state)
        phase_of[state] = phases.setdefault(acting, len(phases)) if acting else -1
    return Division(origins, offsets, tuple(phases), phase_of)


def _acting(
    plan: Plan,
    between: Sequence[tuple[_Place, _Place]],
    where: Mapping[Cut, _Place],
    state: State,
) -> Acting | None:
    """Who acts in a state; None if nobody does."""
    known, above = (*state, 0), -1
    if plan.condition is not None:
        place, count = where[LAST_PROMPT_TOKEN]
        if known[place] < count:
            return None
        place, count = where[PROMPT_END]
        if known[place] < count:
            above = plan.condition.steers_above
    terms = tuple(
        index
        for index, ((at, from_), (end, before)) in enumerate(between)
        if known[at] >= from_ and known[end] < before
    )
    return Acting(terms, above) if terms else None
