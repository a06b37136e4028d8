"""Dose: how much a plan adds at each site, in units of the stream's typical norm there.

    dose(site) = ( |delta| + what its reading terms add, at most ) / s  *  max |gain|

with s the median stream norm of the site's layer, from the plan's own vectors. A plan that adds more than the stream holds
drowns it: the model still answers, fluently or not, but hardly because of its prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_index
from steerfast.plans.term import Term
from steerfast.table.lowering import MeanNorm, Phase, SiteSteering, mean_norms, scaled


def doses(plan: Plan, phases: Iterable[Phase]) -> list[dict[int, float]]:
    """Of each phase of a lowered plan: {site: dose}.

    Sites whose stream norm no vector of the plan carries are left out. Ablations, reflections and rotations do not count:
    they move h by no more than its own size.
    """
    norms = _stream_norms(plan)
    gain = (
        max((abs(gain) for _, gain in plan.schedule.points), default=1.0) if plan.schedule else 1.0
    )
    reading = _reading(plan, norms)
    lengths: dict[int, tuple[SiteSteering, float]] = {}  # phases share what they do at a site
    found = []
    for phase in phases:
        here: dict[int, float] = {}
        for site, steering in phase.sites.items():
            norm = norms.get(_layer(site))
            if norm is None:
                continue
            if id(steering) not in lengths:
                delta = 0.0 if steering.delta is None else _length(steering.delta)
                lengths[id(steering)] = steering, delta
            here[site] = (reading.get(site, 0.0) + lengths[id(steering)][1] / norm) * gain
        found.append(here)
    return found


def greatest(plan: Plan, phases: Iterable[Phase]) -> dict[int, float]:
    """{site: dose} of the phase that adds most in all."""
    return max(doses(plan, phases), key=lambda phase: sum(phase.values()), default={})


def _layer(site: int) -> int:
    """The layer whose output the site's stream resembles; ``resid_pre`` of layer 0 has none: -1."""
    return (site - 1) // 2 if site else -1


def _stream_norms(plan: Plan) -> dict[int, float]:
    found: dict[int, float] = {}
    for term in plan.terms:
        found |= term.vector.stream_norms
    return found


def _reading(plan: Plan, norms: Mapping[int, float]) -> dict[int, float]:
    """What terms that read may add at each site to a stream of the typical norm, at most; phases aside."""
    mean_norm, found = mean_norms(plan.terms), dict[int, float]()
    for term in plan.terms:
        if term.operator == "add" and term.gate is None:  # it is part of the delta
            continue
        for layer in term.steered_layers:
            site = site_index(term.site, layer)
            norm = norms.get(_layer(site))
            if norm is not None:
                found[site] = found.get(site, 0.0) + _share(term, layer, norm, mean_norm)
    return found


def _share(term: Term, layer: int, norm: float, mean_norm: MeanNorm) -> float:
    if term.operator == "add":
        return abs(term.coefficient) * _length(scaled(term, layer, mean_norm)) / norm
    if term.operator == "add_relative":
        return abs(term.coefficient)
    if term.operator == "signed":
        return abs(term.coefficient) / norm
    if term.operator in ("clamp", "floor", "ceiling"):
        return abs(term.target or 0.0) / norm
    if term.operator in ("map", "feature_clamp"):
        assert term.read is not None
        read = _length(term.read.direction(layer)) * norm + abs(term.bias)
        times = (
            abs(term.coefficient) * read
            if term.operator == "map"
            else abs(term.target or 0.0) + read
        )
        return times * _length(term.vector.direction(layer)) / norm
    return 0.0


def _length(direction: Tensor) -> float:
    return float(torch.linalg.vector_norm(direction.double()))
