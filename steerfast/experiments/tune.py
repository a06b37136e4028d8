"""The strongest steering that a budget allows: layer and coefficient for one behaviour, and the trade-off front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steerfast.experiments import behaviours
from steerfast.experiments.choice import Sign
from steerfast.experiments.config import BehavioursConfig
from steerfast.experiments.dose import random_control
from steerfast.experiments.effects import Effect, effect
from steerfast.experiments.measure import Laboratory, Pieces, check_capable
from steerfast.experiments.progress import Stage
from steerfast.experiments.questions import Split
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

CONTROLS = 19  # random directions beside the one that is picked


@dataclass(frozen=True)
class Candidate:
    """A layer and a coefficient: effect on the log-odds of the behaviour (nats, positive in the wanted direction) and the share of
    the model's top-1 accuracy on text that is lost."""

    layer: int
    coefficient: float
    effect: float
    lost: float


@dataclass(frozen=True)
class HeldOut:
    """A candidate on questions that neither made the vector nor chose it, in nats, positive in the wanted direction.

    effect: of the plan, with its 95% bootstrap interval. random: of ``CONTROLS`` random directions of the same length,
    at the same layer with the same coefficient; None where one was not finite.
    """

    questions: int
    effect: Effect
    random: tuple[float | None, ...]

    @property
    def strongest_random(self) -> float | None:
        """The greatest effect of a random direction, either way: its opposite is as random."""
        sizes = [abs(one) for one in self.random if one is not None]
        return max(sizes) if len(sizes) == len(self.random) else None

    @property
    def better_than_chance(self) -> bool:
        """Whether the effect's interval lies above 0, and no random direction does as much: of 20 directions of no
        meaning, one is the strongest 1 time in 20."""
        mean, low, _ = self.effect
        random = self.strongest_random
        if mean is None or low is None or random is None:
            return False
        return low > 0 and mean > random


@dataclass(frozen=True)
class Tuned:
    """picked: the strongest candidate within the budget on the questions for choosing, or None; held_out: what it does on
    others. best, plan: it, if that is better than chance. front: those that no other beats in both effect and loss, by
    loss. all: every usable candidate."""

    picked: Candidate | None
    held_out: HeldOut | None
    plan: Plan | None
    front: tuple[Candidate, ...]
    all: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate | None:
        return None if self.plan is None else self.picked


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
    Only points with an effect in the wanted direction that leave the model usable are candidates. The best of many is
    partly luck, so the one that is picked on ``split.validation`` is measured again on ``split.test``.
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
    picked = pick(candidates, budget)
    if picked is None:
        return Tuned(None, None, None, front(candidates), candidates)
    advance = stage("held out", 1)
    held = held_out(laboratory, config, split, vector, picked, trials, sign)
    advance()
    plan = plans[1 + candidates.index(picked)] if held.better_than_chance else None
    return Tuned(picked, held, plan, front(candidates), candidates)


def held_out(
    laboratory: Laboratory,
    config: BehavioursConfig,
    split: Split,
    vector: SteeringVector,
    picked: Candidate,
    trials: Trials,
    sign: Sign,
) -> HeldOut:
    """The candidate and its controls on ``split.test``."""
    directions = [vector, *(random_control(vector, seed) for seed in range(CONTROLS))]
    plans = [
        individual(one, picked.layer, picked.coefficient, scale=config.scale) for one in directions
    ]
    (results,) = trials.complete([laboratory.answers([None, *plans], split.test)])
    unsteered, *odds = [_signed(result["log_odds"], sign) for result in results]
    strata = [one.matching for one in split.test]
    first, *random = [effect(one, unsteered, strata) for one in odds]
    return HeldOut(len(split.test), first, tuple(one.mean for one in random))


def _signed(odds: Sequence[float | None], sign: Sign) -> list[float | None]:
    return [None if value is None else sign * value for value in odds]


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
    held = tuned.held_out
    return {
        "best": None if tuned.best is None else vars(tuned.best),
        "picked": None if tuned.picked is None else vars(tuned.picked),
        "held_out": held
        and {
            **asdict(held),
            "effect": list(held.effect),
            "better_than_chance": held.better_than_chance,
        },
        "front": [vars(one) for one in tuned.front],
        "candidates": len(tuned.all),
    }
