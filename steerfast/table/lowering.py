"""From a plan to numbers: what each phase does at each site, as one delta and a program of reads.

Selectors cut a request's positions into phases, in each of which the same terms act. Within a phase and at a
site, every constant term collapses into one delta, so that cost does not depend on how many vectors a plan has. The
other terms become reads (``steerfast.table.programs``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steerfast.errors import PlanTooLargeError
from steerfast.ops.records import FINISH_CODES
from steerfast.plans.plan import Plan
from steerfast.plans.selectors import Cut, span
from steerfast.plans.sites import site_index, site_name
from steerfast.plans.term import Term
from steerfast.table.programs import LoweredRead, program

MAX_SEGMENTS = 64  # stretches of one request's positions, each with its slot
MAX_STATES = 1024
START, PROMPT_END, LAST_PROMPT_TOKEN = Cut("start"), Cut("prompt_end"), Cut("prompt_end", -1)

Origin = Literal["start", "prompt_end"] | tuple[int, ...]
_Acting = tuple[tuple[int, ...], int] | tuple[()]
_At = tuple[int, int]  # a term, by its number, and the layer whose direction it has
LowerSite = Callable[[int, tuple[_At, ...]], "SiteSteering"]


class SiteSteering(NamedTuple):
    """delta: [D] float32, or None; finish: its code in ``records.FINISH_CODES``; reads: the program, or ()."""

    delta: Tensor | None
    finish: int
    reads: tuple[LoweredRead, ...] = ()


class Sites(Mapping[int, SiteSteering]):
    """{site: SiteSteering} of a phase. Which sites act is known; what happens there is lowered when it is asked for."""

    def __init__(self, terms_at: Mapping[int, tuple[_At, ...]], lower_site: LowerSite) -> None:
        self._terms_at, self._lower_site = terms_at, lower_site

    def __getitem__(self, site: int) -> SiteSteering:
        return self._lower_site(site, self._terms_at[site])

    def __iter__(self) -> Iterator[int]:
        return iter(self._terms_at)

    def __len__(self) -> int:
        return len(self._terms_at)


@dataclass(frozen=True)
class Phase:
    """Positions in which the same terms act, and what they do: {site: SiteSteering}.

    No entry means that the site has no active term in this phase: rows keep their very bits.
    """

    name: str
    sites: Sites


@dataclass(frozen=True)
class Lowered:
    """A plan's phases, and which of them holds where.

    Cuts (``steerfast.plans.selectors``) of one origin keep their order whatever the request, those of different
    origins do not: position 5 may come before the prompt's end or after it. So a **state** counts, for each of
    ``origins``, how many of its ``offsets`` have been passed, and ``phase_of`` maps each state to a phase, or -1: nothing acts.
    """

    origins: tuple[Origin, ...]
    offsets: tuple[tuple[int, ...], ...]
    phases: tuple[Phase, ...]
    phase_of: Mapping[tuple[int, ...], int]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The token sequences that terms act after."""
        return [origin for origin in self.origins if isinstance(origin, tuple)]

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


def lower(plan: Plan, slots: int | None = None) -> Lowered:
    """The phases of a plan; one if its selectors are all ``all``.

    slots: how many phases there is room for, if that is known: looked at before anything is computed, as terms after
    several sequences, whose order in a prompt is not known, act in every combination of them.

    Directions are normalised, scaled, orthonormalised and summed in float64 and rounded to float32 once, site by site
    when a phase is asked for it. Raises ValueError where the selectors cut positions into too many pieces; a phase's
    site does where a sum or a number exceeds float32, or the site needs too many reads.
    """
    terms = [part for term in plan.terms for part in term.by_position()]
    spans = [span(term.select) for term in terms]
    cuts = {cut for pair in spans for cut in pair if cut is not None}
    if plan.condition is not None:
        cuts |= {LAST_PROMPT_TOKEN, PROMPT_END}
    cuts -= {cut for cut in cuts if cut.origin == "start" and cut.offset <= 0}  # always passed
    origins = tuple(sorted({cut.origin for cut in cuts}, key=repr))
    offsets = tuple(
        tuple(sorted(cut.offset for cut in cuts if cut.origin == origin)) for origin in origins
    )
    # Counted first: of very many cuts the combinations are a number of thousands of digits.
    states = 0 if len(cuts) >= MAX_SEGMENTS else math.prod(len(each) + 1 for each in offsets)
    if not states:
        raise ValueError(
            f"the plan's selectors cut positions in {len(cuts)} places; up to {MAX_SEGMENTS - 1} fit: use fewer ranges, or "
            "fewer positions of a positional vector"
        )
    if states > MAX_STATES:
        raise ValueError(
            f"the plan's selectors cut positions in {len(cuts)} places ({states} combinations); up to "
            f"{MAX_SEGMENTS - 1} places ({MAX_STATES}) fit: use fewer ranges, or fewer positions of a positional vector"
        )
    names: dict[_Acting, list[str]] = {}
    phase_of: dict[tuple[int, ...], int] = {}
    for state in product(*(range(len(each) + 1) for each in offsets)):
        passed = {
            Cut(origin, offset)
            for origin, each, count in zip(origins, offsets, state, strict=True)
            for offset in each[:count]
        }
        acting = _acting(plan, spans, passed)
        if acting:
            names.setdefault(acting, []).append(_name(origins, offsets, state))
        phase_of[state] = list(names).index(acting) if acting else -1
    at_site = {acting: _terms_at(plan, terms, acting) for acting in names}
    needed = sum(bool(sites) for sites in at_site.values())
    if slots is not None and needed > slots:
        raise PlanTooLargeError(
            "slots",
            f"the plan needs {needed} slots, one for each combination of its selectors, and there are {slots} in all: "
            "use fewer ranges, or fewer sequences to act after",
        )
    finish = FINISH_CODES[plan.finish]

    @cache  # many phases have the same terms at a site, and all have the same constants
    def lower_site(site: int, here: tuple[_At, ...]) -> SiteSteering:
        return _site(site, here, finish, terms, constant)

    @cache
    def constant(index: int, layer: int) -> Tensor:
        return terms[index].coefficient * scaled(terms, terms[index], layer)

    phases = tuple(
        Phase(" or ".join(each), Sites(at_site[acting], lower_site))
        for acting, each in names.items()
    )
    return Lowered(origins, offsets, phases, phase_of)


def _acting(plan: Plan, spans: Sequence[tuple[Cut, Cut | None]], passed: set[Cut]) -> _Acting:
    """(terms that act, above which site) where these cuts are passed; () if none does."""
    above = -1
    if plan.condition is not None:
        if LAST_PROMPT_TOKEN not in passed:
            return ()
        if PROMPT_END not in passed:
            above = plan.condition.steers_above
    terms = tuple(
        index
        for index, (first, last) in enumerate(spans)
        if (first in passed or first == START) and last not in passed
    )
    return (terms, above) if terms else ()


def _name(
    origins: Sequence[Origin], offsets: Sequence[tuple[int, ...]], state: Sequence[int]
) -> str:
    """A state for a report: ``all``, ``prompt``, ``generated``, or its bounds: ``5 <= t < P-1``."""
    if not origins:
        return "all"
    if origins == ("prompt_end",) and offsets == ((0,),):
        return ("prompt", "generated")[state[0]]
    parts = []
    for origin, each, count in zip(origins, offsets, state, strict=True):
        zero = {"start": "", "prompt_end": "P"}.get(str(origin), "S")
        bounds = [(f"{zero}{at:+d}" if at else zero) if zero else str(at) for at in each]
        left = f"{bounds[count - 1]} <= " if count else ""
        right = f" < {bounds[count]}" if count < len(bounds) else ""
        parts.append(f"{left}t{right}")
    return ", ".join(parts)


def _terms_at(plan: Plan, terms: Sequence[Term], acting: _Acting) -> dict[int, tuple[_At, ...]]:
    """{site: the terms that act there, each with the layer whose direction it has}, in their order."""
    assert acting
    chosen, above = acting
    found: dict[int, list[_At]] = {}
    for index in chosen:
        term = terms[index]
        for layer in () if term.idle else term.steered_layers:
            site = site_index(term.site, layer)
            if site > above:
                found.setdefault(site, []).append((index, layer))
    return {site: tuple(each) for site, each in found.items()}


def _site(
    site: int,
    here: Sequence[_At],
    finish: int,
    terms: Sequence[Term],
    constant: Callable[[int, int], Tensor],
) -> SiteSteering:
    total: Tensor | None = None
    reading = []
    for index, layer in here:
        term = terms[index]
        if term.operator != "add" or term.gate is not None:
            reading.append((term, layer))
            continue
        contribution = constant(index, layer)
        total = contribution if total is None else total + contribution
    delta = None if total is None else total.to(torch.float32)
    if delta is not None and not torch.isfinite(delta).all():
        raise ValueError(
            f"the plan adds more than float32 can hold at {site_name(site)}; lower its coefficients"
        )
    reads = program(reading, lambda term, layer: scaled(terms, term, layer), site_name(site))
    if not all(_fits(read) for read in reads):
        raise ValueError(
            f"a number of the plan at {site_name(site)} exceeds what float32 can hold; lower its coefficient or bias"
        )
    return SiteSteering(delta, finish, reads)


def _fits(one: LoweredRead) -> bool:
    """Whether float32 holds its numbers and directions."""
    try:
        words = one.read.words()
    except OverflowError:
        return False
    numbers = torch.tensor(words[6:], dtype=torch.int32).view(torch.float32)
    directions = [numbers, *(each for each in (one.source, one.target) if each is not None)]
    return all(bool(torch.isfinite(each).all()) for each in directions)


def scaled(every: Sequence[Term], term: Term, layer: int) -> Tensor:
    """scale(v) of ``Term``, float64."""
    if term.scale == "raw":
        return term.vector.at(layer).double()
    if term.scale == "stream":
        return term.unit(layer) * term.stream_norm(layer)
    if term.scale == "equal":
        return term.unit(layer) * _mean_norm(every, site_index(term.site, layer))
    return term.unit(layer)


def _mean_norm(every: Sequence[Term], site: int) -> float:
    """Mean norm of the distinct directions that the plan's ``add`` terms name at a site, coefficients aside."""
    norms: dict[bytes, float] = {}
    for term in every:
        if term.operator != "add":
            continue
        for layer in term.steered_layers:
            if site_index(term.site, layer) == site:
                direction = term.vector.at(layer)
                norm = torch.linalg.vector_norm(direction.to(torch.float64))
                norms[direction.numpy().tobytes()] = float(norm)
    return sum(norms.values()) / len(norms)
