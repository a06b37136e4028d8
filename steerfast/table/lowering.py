"""From a plan to numbers: what each phase does at each site, as one delta and a program of reads.

Selectors cut a request's positions into phases, in each of which the same terms act. Within a phase and at a
site, every constant term collapses into one delta, so that cost does not depend on how many vectors a plan has. The
other terms become reads (``steerfast.table.programs``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.ops.records import FINISH_CODES
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_index, site_name
from steerfast.plans.term import Term
from steerfast.table.phases import Acting, Division, Origin, State, check_positions, divide
from steerfast.table.programs import LoweredRead, program

MAX_WHOLE = 16  # phases that a request holds though its course meets fewer
_At = tuple[int, int]  # a term, by its number, and the layer whose direction it has
LowerSite = Callable[[int, tuple[_At, ...]], "SiteSteering"]
MeanNorm = Callable[[int], float]  # of a site


class SiteSteering(NamedTuple):
    """delta: [D] float32, or None; finish: its code in ``records.FINISH_CODES``; reads: the program, or ()."""

    delta: Tensor | None
    finish: int
    reads: tuple[LoweredRead, ...] = ()


class Sites(Mapping[int, SiteSteering]):
    """{site: SiteSteering} of a phase. Which sites act is known; what happens there is lowered when it is asked for."""

    def __init__(
        self, acting: Acting, sites_of: Sequence[Sequence[tuple[int, int]]], lower_site: LowerSite
    ) -> None:
        self._acting, self._sites_of, self._lower_site = acting, sites_of, lower_site

    def __bool__(self) -> bool:
        """Whether any site acts, which many phases are asked that are never met."""
        terms, above = self._acting
        return any(site > above for index in terms for site, _ in self._sites_of[index])

    @cached_property
    def _terms_at(self) -> dict[int, tuple[_At, ...]]:
        """{site: the terms that act there, each with the layer whose direction it has}, in their order."""
        found: dict[int, list[_At]] = {}
        for index in self._acting.terms:
            for site, layer in self._sites_of[index]:
                if site > self._acting.above:
                    found.setdefault(site, []).append((index, layer))
        return {site: tuple(each) for site, each in found.items()}

    def __getitem__(self, site: int) -> SiteSteering:
        return self._lower_site(site, self._terms_at[site])

    def __iter__(self) -> Iterator[int]:
        return iter(self._terms_at)

    def __len__(self) -> int:
        return len(self._terms_at)


class Phase:
    """Positions in which the same terms act, and what they do: {site: SiteSteering}.

    No entry means that the site has no active term in this phase: rows keep their very bits.
    """

    def __init__(self, division: Division, number: int, sites: Sites) -> None:
        self._division, self.number, self.sites = division, number, sites

    @property
    def name(self) -> str:
        """For a report: ``all``, ``prompt``, ``generated``, or its bounds: ``5 <= t < P-1``."""
        return self._division.name(self.number)


@dataclass(frozen=True)
class Lowered:
    """A plan's phases, and which of them holds where. part: the numbers of those that it is confined to; None: all."""

    division: Division
    sites: Callable[[Acting], Sites]
    forget: Callable[[], None]  # what was computed; asked for again, it is computed again
    part: tuple[int, ...] | None = None

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, or those of its part: made when they are asked for, of many that are never met."""
        numbers = range(len(self.division.acting)) if self.part is None else self.part
        return tuple(
            Phase(self.division, number, self.sites(self.division.acting[number]))
            for number in numbers
        )

    def acts(self, phase: int) -> bool:
        """Whether any site acts in a phase (of all; -1: none does)."""
        return phase >= 0 and bool(self.sites(self.division.acting[phase]))

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.division.origins

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """Of the cuts of each origin, ascending."""
        return self.division.offsets

    @property
    def phase_of(self) -> Mapping[State, int]:
        """The phase of every state, -1: nothing acts."""
        return self.division.phase_of

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The token sequences that terms act after."""
        return [origin for origin in self.origins if isinstance(origin, tuple)]

    def course(self, places: Mapping[Origin, int]) -> list[tuple[int, int]]:
        """[(first position, phase)], ascending, for a request with its origins at these positions, by the numbers of phases."""
        return self.division.course(places)

    @property
    def by_course(self) -> bool:
        """Whether a request takes no more of it than its own course needs."""
        return len(self.division.acting) > MAX_WHOLE

    def key(self, plan: Plan) -> str:
        """The plan's digest, and which part of it this is: who needs the same has the same key."""
        return (
            plan.digest if self.part is None else f"{plan.digest}:{','.join(map(str, self.part))}"
        )

    def along(self, places: Mapping[Origin, int]) -> Lowered:
        """As much of it as such a request needs.

        All of it up to ``MAX_WHOLE`` phases, which requests can share whatever their prompts. Of more, those on the
        request's course: n sequences in unknown order have 2^n combinations, and a prompt meets n + 1 of them.
        """
        if not self.by_course:
            return self
        met = {phase for _, phase in self.course(places)} - {-1}
        whole = len(met) == len(self.division.acting)
        return self if whole else replace(self, part=tuple(sorted(met)))


def lower(plan: Plan) -> Lowered:
    """The phases of a plan; one if its selectors are all ``all``.

    Directions are normalised, scaled, orthonormalised and summed in float64 and rounded to float32 once, site by site
    when a phase is asked for it. Raises ValueError where the selectors cut positions into too many pieces; a phase's
    site does where a sum or a number exceeds float32, or the site needs too many reads.
    """
    check_positions(plan)
    terms = [part for term in plan.terms for part in term.by_position()]
    division = divide(plan, terms)
    steering = [() if term.idle else term.steered_layers for term in terms]
    sites_of = [
        [(site_index(term.site, layer), layer) for layer in layers]
        for term, layers in zip(terms, steering, strict=True)
    ]
    numbers = _Numbers(terms, FINISH_CODES[plan.finish])
    return Lowered(division, lambda acting: Sites(acting, sites_of, numbers.site), numbers.forget)


class _Numbers:
    """What terms do at sites, computed once: many phases have the same terms at a site, and all the same constants."""

    def __init__(self, terms: Sequence[Term], finish: int) -> None:
        self._terms, self._finish = terms, finish
        self._mean_norm: MeanNorm | None = None
        self.forget()

    def forget(self) -> None:
        self._sites: dict[tuple[int, tuple[_At, ...]], SiteSteering] = {}
        self._constants: dict[_At, Tensor] = {}

    def site(self, site: int, here: tuple[_At, ...]) -> SiteSteering:
        found = self._sites.get((site, here))
        if found is None:
            found = _site(site, here, self._finish, self._terms, self._constant, self._scaled)
            self._sites[site, here] = found
        return found

    def _constant(self, index: int, layer: int) -> Tensor:
        if (index, layer) not in self._constants:
            term = self._terms[index]
            self._constants[index, layer] = term.coefficient * self._scaled(term, layer)
        return self._constants[index, layer]

    def _scaled(self, term: Term, layer: int) -> Tensor:
        if self._mean_norm is None:
            self._mean_norm = mean_norms(self._terms)
        return scaled(term, layer, self._mean_norm)


def _site(
    site: int,
    here: Sequence[_At],
    finish: int,
    terms: Sequence[Term],
    constant: Callable[[int, int], Tensor],
    scaled: Callable[[Term, int], Tensor],
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
    reads = program(reading, scaled, site_name(site))
    if not all(_fits(read) for read in reads):
        raise ValueError(
            f"a number of the plan at {site_name(site)} exceeds what float32 can hold; lower its coefficient or bias"
        )
    return SiteSteering(delta, finish, reads)


def _fits(one: LoweredRead) -> bool:
    """Whether float32 holds its numbers; its directions have been rounded, and looked at, by the program."""
    try:
        words = one.read.words()
    except OverflowError:
        return False
    return all(map(math.isfinite, struct.unpack("=6f", struct.pack("=6i", *words[6:]))))


def scaled(term: Term, layer: int, mean_norm: MeanNorm) -> Tensor:
    """scale(v) of ``Term``, float64. mean_norm: of a site, for ``equal``."""
    if term.scale == "raw":
        return term.vector.direction(layer).double()
    if term.scale == "stream":
        return term.unit(layer) * term.stream_norm(layer)
    if term.scale == "equal":
        return term.unit(layer) * mean_norm(site_index(term.site, layer))
    return term.unit(layer)


def mean_norms(every: Sequence[Term]) -> MeanNorm:
    """Of each site the mean norm of the distinct directions that a plan's ``add`` terms name there, coefficients aside."""

    named: dict[int, list[Tensor]] = {}
    for term in every:
        for layer in term.steered_layers if term.operator == "add" else ():
            named.setdefault(site_index(term.site, layer), []).append(term.vector.direction(layer))

    @cache
    def mean(site: int) -> float:
        distinct = {each.numpy().tobytes(): each for each in named[site]}
        norms = [float(torch.linalg.vector_norm(each.double())) for each in distinct.values()]
        return sum(norms) / len(norms)

    return mean
