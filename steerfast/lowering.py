"""From a plan to numbers: what each phase does at each site, as one delta and a program of reads.

A selector cuts a request's positions into phases; within a phase and at a site, every constant term
collapses into one delta, so that cost does not depend on how many vectors a plan has. The other terms
become reads (``steerfast.programs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.plan import Plan
from steerfast.programs import LoweredRead, program
from steerfast.records import FINISH_CODES
from steerfast.sites import site_index, site_name
from steerfast.term import Term


class Start(NamedTuple):
    """The first position of a phase: ``offset``, or P + ``offset`` with ``from_prompt_end``."""

    from_prompt_end: bool
    offset: int


class SiteSteering(NamedTuple):
    """delta: [D] float32, or None; finish: its code in ``records.FINISH_CODES``; reads: the program, or ()."""

    delta: Tensor | None
    finish: int
    reads: tuple[LoweredRead, ...] = ()


@dataclass(frozen=True)
class Phase:
    """The positions from ``start`` to the next phase's start, and what they do: {site: SiteSteering}.

    No entry means that the site has no active term in this phase: rows keep their very bits.
    """

    name: str
    start: Start
    sites: dict[int, SiteSteering]


PROMPT = ("prompt", Start(False, 0))
GENERATED = ("generated", Start(True, 0))


def lower(plan: Plan) -> tuple[Phase, ...]:
    """The phases of a plan, by ascending start; one if all its selectors are ``all``.

    Directions are normalised, scaled, orthonormalised and summed in float64 and rounded to float32
    once. Raises ValueError where a sum or a number exceeds float32, or a site needs too many reads.
    """
    selects = {term.select for term in plan.terms}
    if selects == {"all"}:
        return (Phase("all", Start(False, 0), _sites(plan, "all")),)
    return tuple(Phase(name, start, _sites(plan, name)) for name, start in (PROMPT, GENERATED))


def _sites(plan: Plan, phase: str) -> dict[int, SiteSteering]:
    acting: dict[int, list[tuple[Term, int]]] = {}
    for term in plan.terms:
        if term.select not in ("all", phase) or term.idle:
            continue
        for layer in term.steered_layers:
            acting.setdefault(site_index(term.site, layer), []).append((term, layer))
    finish = FINISH_CODES[plan.finish]
    return {site: _site(plan, site, terms, finish) for site, terms in acting.items()}


def _site(plan: Plan, site: int, terms: list[tuple[Term, int]], finish: int) -> SiteSteering:
    total: Tensor | None = None
    reading = []
    for term, layer in terms:
        if term.operator != "add" or term.gate is not None:
            reading.append((term, layer))
            continue
        contribution = term.coefficient * _scaled(plan, term, layer)
        total = contribution if total is None else total + contribution
    delta = None if total is None else total.to(torch.float32)
    if delta is not None and not torch.isfinite(delta).all():
        raise ValueError(
            f"the plan adds more than float32 can hold at {site_name(site)}; lower its coefficients"
        )
    reads = program(reading, lambda term, layer: _scaled(plan, term, layer), site_name(site))
    return SiteSteering(delta, finish, reads)


def _scaled(plan: Plan, term: Term, layer: int) -> Tensor:
    """scale(v) of ``Term``, float64."""
    if term.scale == "raw":
        return term.vector.at(layer).double()
    if term.scale == "stream":
        return term.unit(layer) * term.stream_norm(layer)
    if term.scale == "equal":
        return term.unit(layer) * _mean_norm(plan, site_index(term.site, layer))
    return term.unit(layer)


def _mean_norm(plan: Plan, site: int) -> float:
    """Mean norm of the distinct directions that the plan's ``add`` terms name at a site, coefficients aside."""
    norms: dict[bytes, float] = {}
    for term in plan.terms:
        if term.operator != "add":
            continue
        for layer in term.steered_layers:
            if site_index(term.site, layer) == site:
                direction = term.vector.at(layer)
                norm = torch.linalg.vector_norm(direction.to(torch.float64))
                norms[direction.numpy().tobytes()] = float(norm)
    return sum(norms.values()) / len(norms)
