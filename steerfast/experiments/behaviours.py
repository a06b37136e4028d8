"""The paper's second study: several behaviours, one by one and together.

Vectors from contrast pairs; a grid over layers and coefficients on the validation split, each layer and sign until it
breaks the model; then, on the test split, the chosen coefficients alone (individual), merged into one vector
(combined) and each at its own layer (simultaneous).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from steerfast.experiments.choice import SIGNS, GridPoint, Sign, chosen
from steerfast.experiments.config import BehavioursConfig, described
from steerfast.experiments.effects import cosines, effect, interaction
from steerfast.experiments.examples import examples
from steerfast.experiments.measure import Laboratory, Pieces, scored
from steerfast.experiments.progress import Stage
from steerfast.experiments.questions import Question, Split
from steerfast.experiments.schemes import combined, individual, simultaneous
from steerfast.experiments.trials import Result, Trials
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

Chosen = dict[str, dict[int, dict[Sign, float]]]


@dataclass(frozen=True)
class Arm:
    """One plan of the test: its scheme, how it is told apart, and the plan."""

    scheme: str
    label: Mapping[str, Any]
    plan: Plan | None


def run(
    laboratory: Laboratory,
    config: BehavioursConfig,
    splits: Mapping[str, Split],
    vectors: Mapping[str, SteeringVector],
    trials: Trials,
    stage: Stage,
    text: Pieces | None = None,
    spread: Any = None,
) -> dict[str, Any]:
    """The whole study, as plain data; nothing that ``trials`` holds is measured again.

    vectors: of every behaviour, with the layers that the configuration names. text: for the alignment tax.
    """
    points = grid(laboratory, config, splits, vectors, trials, stage, spread)
    found = chosen(points, config.individual_layers, config.choose)
    for name, layers in config.chosen.items():
        for layer, pair in layers.items():
            found[name][int(layer)] = dict(zip(SIGNS, pair, strict=True))
    arms = tested_arms(config, vectors, found)
    advance = stage("test", len(splits) + (text is not None))
    jobs = [laboratory.answers([arm.plan for arm in arms], splits[name].test) for name in splits]
    measured = trials.complete(jobs, done=lambda job: advance(), spread=spread)
    answers = dict(zip(splits, measured, strict=True))
    taxes: list[Result] = [{} for _ in arms]
    if text is not None:
        tax = [laboratory.accuracy([arm.plan for arm in arms], text)]
        (taxes,) = trials.complete(tax, done=lambda job: advance(), spread=spread)
    shown = shown_arms(arms, config)
    named = sorted({*config.layers, *config.individual_layers, *config.simultaneous.values()})
    return {
        "kind": "behaviours",
        "config": described(config),
        "grid": {name: [_point(point) for point in here] for name, here in points.items()},
        "chosen": {
            name: {
                str(layer): {str(sign): c for sign, c in by.items()} for layer, by in here.items()
            }
            for name, here in found.items()
        },
        "test": [
            _arm(arm, number, splits, answers, tax)
            for number, (arm, tax) in enumerate(zip(arms, taxes, strict=True))
        ],
        "examples": examples(
            laboratory, config.examples, {_shown(arm): arm.plan for arm in shown}, trials
        ),
        "interactions": interactions(splits, arms, answers),
        "cosines": cosines(vectors, named),
        "norms": {
            name: {str(layer): round(float(vector.at(layer).norm()), 6) for layer in named}
            for name, vector in vectors.items()
        },
    }


def grid(
    laboratory: Laboratory,
    config: BehavioursConfig,
    splits: Mapping[str, Split],
    vectors: Mapping[str, SteeringVector],
    trials: Trials,
    stage: Stage,
    spread: Any = None,
) -> dict[str, list[GridPoint]]:
    """Every behaviour's own vector on its validation questions. Coefficients ascend; a layer and sign ends with the
    first point that has mode collapse or more than 10 faulty answers, which is recorded (the paper's rule)."""
    advance = stage("grid", (1 + len(config.coefficients)) * len(splits))
    jobs = [laboratory.answers([None], split.validation) for split in splits.values()]
    plain = trials.complete(jobs, done=lambda job: advance(), spread=spread)
    unsteered = {name: result for name, (result,) in zip(splits, plain, strict=True)}
    alive = {name: [(at, sign) for at in config.layers for sign in SIGNS] for name in splits}
    points: dict[str, list[GridPoint]] = {name: [] for name in splits}
    for size in config.coefficients:
        names = [name for name in splits if alive[name]]
        jobs = []
        for name in names:
            plans = [
                individual(vectors[name], at, sign * size, scale=config.scale)
                for at, sign in alive[name]
            ]
            jobs.append(laboratory.answers(plans, splits[name].validation))
        measured = trials.complete(jobs, done=lambda job: advance(), spread=spread)
        for name, results in zip(names, measured, strict=True):
            going_on = []
            for (at, sign), result in zip(alive[name], results, strict=True):
                score = scored(result, splits[name].validation)
                before = unsteered[name]
                usable = not score.ends_sweep(scored(before, splits[name].validation))
                change = effect(
                    result["log_odds"], before["log_odds"], _strata(splits[name].validation)
                ).mean
                points[name].append(GridPoint(at, sign * size, score, usable, change))
                if usable:
                    going_on.append((at, sign))
            alive[name] = going_on
        for _ in range(len(splits) - len(names)):
            advance()
    return points


def tested_arms(
    config: BehavioursConfig, vectors: Mapping[str, SteeringVector], found: Chosen
) -> list[Arm]:
    """Every plan that is tested, the unsteered model first."""
    arms = [Arm("unsteered", {}, None)]
    scale, names = config.scale, list(vectors)
    for layer in config.individual_layers:
        for name in names:
            for sign, c in found[name][layer].items():
                label = {"behaviour": name, "layer": layer, "coefficient": c, "sign": sign}
                plan = individual(vectors[name], layer, c, scale=scale)
                arms.append(Arm("individual", label, plan))
    for layer in config.individual_layers:
        for reduce in ("sum", "mean"):
            for sign in SIGNS:
                weights = {
                    "unweighted": dict.fromkeys(names, sign * config.unweighted),
                    # A behaviour that no coefficient steers this way without breaking takes no part.
                    "weighted": {name: found[name][layer].get(sign, 0.0) for name in names},
                }
                for kind, each in weights.items():
                    label = {"layer": layer, "reduce": reduce, "sign": sign, "weights": kind}
                    plan = combined(vectors, layer, each, reduce=reduce, scale=scale)  # type: ignore[arg-type]
                    arms.append(Arm("combined", label, plan))
    first, last, step = config.global_coefficients
    for c in np.round(np.arange(first, last + step / 2, step), 10).tolist():
        plan = simultaneous(vectors, config.simultaneous, c, scale=scale)
        arms.append(Arm("simultaneous", {"coefficient": c}, plan))
    for sign in SIGNS:
        c = sign * config.pair_coefficient
        for size in (1, 2):
            for some in combinations(names, size):
                plan = simultaneous(
                    {name: vectors[name] for name in some},
                    {name: config.simultaneous[name] for name in some},
                    c,
                    scale=scale,
                )
                label = {"behaviours": list(some), "coefficient": c}
                arms.append(Arm("alone" if size == 1 else "pair", label, plan))
    return arms


def interactions(
    splits: Mapping[str, Split], arms: Sequence[Arm], answers: Mapping[str, Sequence[Result]]
) -> list[dict[str, Any]]:
    """Of each pair of behaviours and each behaviour's questions: effect together minus effects alone."""
    alone = {
        (arm.label["behaviours"][0], arm.label["coefficient"]): number
        for number, arm in enumerate(arms)
        if arm.scheme == "alone"
    }
    rows = []
    for number, arm in enumerate(arms):
        if arm.scheme != "pair":
            continue
        both, c = arm.label["behaviours"], arm.label["coefficient"]
        for name, results in answers.items():
            odds = [result["log_odds"] for result in results]
            parts = [odds[alone[each, c]] for each in both]
            found = interaction(odds[number], parts, odds[0], _strata(splits[name].test))
            rows.append({"pair": both, "coefficient": c, "questions": name, "nats": list(found)})
    return rows


def shown_arms(arms: Sequence[Arm], config: BehavioursConfig) -> list[Arm]:
    """The plans whose continuations the report shows: none, and the single vectors of the last layer that is tested."""
    at = config.individual_layers[-1]
    return [
        arm
        for arm in arms
        if arm.plan is None or (arm.scheme == "individual" and arm.label["layer"] == at)
    ]


def _shown(arm: Arm) -> str:
    if arm.plan is None:
        return "unsteered"
    return "{behaviour} {coefficient:+g} at layer {layer}".format(**arm.label)


def _arm(
    arm: Arm,
    number: int,
    splits: Mapping[str, Split],
    answers: Mapping[str, Sequence[Result]],
    tax: Result,
) -> dict[str, Any]:
    scores = {}
    for name, split in splits.items():
        result, unsteered = answers[name][number], answers[name][0]
        score = scored(result, split.test)
        change = effect(result["log_odds"], unsteered["log_odds"], _strata(split.test))
        scores[name] = {**_score(score), "effect": list(change)}
    digest = None if arm.plan is None else arm.plan.digest
    return {"scheme": arm.scheme, **arm.label, "plan": digest, "scores": scores, "tax": tax}


def _strata(asked: Sequence[Question]) -> list[str]:
    return [one.matching for one in asked]


def _point(point: GridPoint) -> dict[str, Any]:
    where = {"layer": point.layer, "coefficient": point.coefficient, "usable": point.usable}
    return {**where, "effect": point.effect, **_score(point.score)}


def _score(score: Any) -> dict[str, Any]:
    return {
        "total": score.total,
        "matches": score.matches,
        "matching": round(score.matching, 6),
        "faulty": score.faulty,
        "collapsed": score.collapsed,
        "counts": dict(score.counts),
    }
