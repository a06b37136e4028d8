"""The strongest steering that a budget allows: layer and coefficient for one behaviour, and the trade-off front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerfast.experiments import behaviours
from steerfast.experiments.choice import Sign
from steerfast.experiments.config import BehavioursConfig
from steerfast.experiments.measure import Laboratory, Pieces, check_capable
from steerfast.experiments.progress import Stage
from steerfast.experiments.questions import Split
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector


@dataclass(frozen=True)
class Candidate:
    """A layer and a coefficient: effect on the log-odds of the behaviour (nats, positive in the wanted direction) and the share of
    the model's top-1 accuracy on text that is lost."""

    layer: int
    coefficient: float
    effect: float
    lost: float


@dataclass(frozen=True)
class Tuned:
    """best: the strongest candidate within the budget, or None. front: those that no other beats in both effect and loss, by
    loss. all: every usable candidate."""

    best: Candidate | None
    plan: Plan | None
    front: tuple[Candidate, ...]
    all: tuple[Candidate, ...]


def tune(
    laboratory: Laboratory,
    config: BehavioursConfig,
    behaviour: str,
    split: Split,
    vector: SteeringVector,
    text: Pieces,
    trials: Trials,
    stage: Stage,
    *,
    sign: Sign = 1,
    budget: float = 0.02,
) -> Tuned:
    """Search the configuration's grid for one behaviour.

    sign: towards the behaviour, or away from it (-1). budget: the share of top-1 accuracy on ``text`` that may be
    lost (0.02: 2% of what it was). Uses the trials of a study of the same configuration, where they are.
    Only points with an effect in the wanted direction that leave the model usable are candidates.
    """
    points = behaviours.grid(
        laboratory, config, {behaviour: split}, {behaviour: vector}, trials, stage
    )[behaviour]
    usable = [
        point
        for point in points
        if point.usable and point.effect is not None and sign * point.effect > 0
    ]
    plans: list[Plan | None] = [None]
    plans += [
        individual(vector, point.layer, point.coefficient, scale=config.scale) for point in usable
    ]
    advance = stage("capability", 1)
    (accuracies,) = trials.complete([laboratory.accuracy(plans, text)])
    advance()
    check_capable(accuracies[0], text.name)
    before = accuracies[0]["top1"]
    candidates = tuple(
        Candidate(
            point.layer, point.coefficient, sign * (point.effect or 0.0), 1 - after["top1"] / before
        )
        for point, after in zip(usable, accuracies[1:], strict=True)
    )
    best = pick(candidates, budget)
    plan = None if best is None else plans[1 + candidates.index(best)]
    return Tuned(best, plan, front(candidates), candidates)


def pick(candidates: Sequence[Candidate], budget: float) -> Candidate | None:
    """The greatest effect with at most ``budget`` lost; of equals the one that loses less."""
    allowed = [one for one in candidates if one.lost <= budget]
    return max(allowed, key=lambda one: (one.effect, -one.lost), default=None)


def front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The Pareto front: ever greater effects for ever greater losses."""
    result: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.lost, -one.effect)):
        if not result or one.effect > result[-1].effect:
            result.append(one)
    return tuple(result)


def described(tuned: Tuned) -> Mapping[str, Any]:
    """As plain data."""
    best = None if tuned.best is None else vars(tuned.best)
    return {
        "best": best,
        "front": [vars(one) for one in tuned.front],
        "candidates": len(tuned.all),
    }
