"""From a plan to numbers: the delta that each phase adds at each site, in one float32 row.

A selector cuts a request's positions into phases; within a phase and at a site, every constant term
collapses into one delta, so that cost does not depend on how many vectors a plan has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.plan import Plan, Site, Term
from steerfast.reference import FINISH_CODES


def site_count(num_layers: int) -> int:
    """resid_pre of layer 0, then resid_mid and resid_post of every layer."""
    return 1 + 2 * num_layers


def site_index(site: Site, layer: int) -> int:
    """The site's row in the table; ``resid_pre`` of layer l >= 1 is ``resid_post`` of l - 1."""
    if site == "resid_pre":
        return 0 if layer == 0 else site_index("resid_post", layer - 1)
    return 1 + 2 * layer + (site == "resid_post")


def site_name(index: int) -> str:
    """``resid_post[15]``: the inverse of ``site_index``, for messages and reports."""
    if index == 0:
        return "resid_pre[0]"
    layer, post = divmod(index - 1, 2)
    return f"{'resid_post' if post else 'resid_mid'}[{layer}]"


class Start(NamedTuple):
    """The first position of a phase: ``offset``, or P + ``offset`` with ``from_prompt_end``."""

    from_prompt_end: bool
    offset: int


class SiteDelta(NamedTuple):
    """delta: [D] float32; finish: its code in ``reference.FINISH_CODES``."""

    delta: Tensor
    finish: int


@dataclass(frozen=True)
class Phase:
    """The positions from ``start`` to the next phase's start, and what they add: {site: SiteDelta}.

    No entry means that the site has no active term in this phase: rows keep their very bits.
    """

    name: str
    start: Start
    deltas: dict[int, SiteDelta]


PROMPT = ("prompt", Start(False, 0))
GENERATED = ("generated", Start(True, 0))


def lower(plan: Plan) -> tuple[Phase, ...]:
    """The phases of a plan, by ascending start; one if all its selectors are ``all``.

    Directions are normalised, scaled and summed in float64 and rounded to float32 once. Raises
    ValueError where opposite terms of a scale ``equal`` or others leave no finite sum.
    """
    selects = {term.select for term in plan.terms}
    if selects == {"all"}:
        return (Phase("all", Start(False, 0), _deltas(plan, "all")),)
    return tuple(Phase(name, start, _deltas(plan, name)) for name, start in (PROMPT, GENERATED))


def _deltas(plan: Plan, phase: str) -> dict[int, SiteDelta]:
    sums: dict[int, Tensor] = {}
    for term in plan.terms:
        if term.select not in ("all", phase) or term.coefficient == 0.0:
            continue
        for layer in term.steered_layers:
            site = site_index(term.site, layer)
            contribution = term.coefficient * _scaled(plan, term, layer)
            sums[site] = sums[site] + contribution if site in sums else contribution
    finish = FINISH_CODES[plan.finish]
    lowered: dict[int, SiteDelta] = {}
    for site, total in sums.items():
        delta = total.to(torch.float32)
        if not torch.isfinite(delta).all():
            raise ValueError(
                f"the plan adds more than float32 can hold at {site_name(site)}; lower its coefficients"
            )
        lowered[site] = SiteDelta(delta, finish)
    return lowered


def _scaled(plan: Plan, term: Term, layer: int) -> Tensor:
    """scale(v) of ``Term``, float64."""
    direction = term.vector.at(layer).to(torch.float64)
    if term.scale == "raw":
        return direction
    unit: Tensor = direction / torch.linalg.vector_norm(direction)
    if term.scale == "stream":
        return unit * term.stream_norm(layer)
    return unit * _mean_norm(plan, site_index(term.site, layer)) if term.scale == "equal" else unit


def _mean_norm(plan: Plan, site: int) -> float:
    """Mean norm of the distinct directions that the plan's terms name at a site, coefficients aside."""
    norms: dict[bytes, float] = {}
    for term in plan.terms:
        for layer in term.steered_layers:
            if site_index(term.site, layer) == site:
                direction = term.vector.at(layer)
                norm = torch.linalg.vector_norm(direction.to(torch.float64))
                norms[direction.numpy().tobytes()] = float(norm)
    return sum(norms.values()) / len(norms)
