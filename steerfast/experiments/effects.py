"""What steering did to the log-odds of answers: effects with confidence intervals, interactions, cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from steerfast.plans.vector import SteeringVector

RESAMPLES = 2000


class Effect(NamedTuple):
    """A mean change of log-odds in nats, and its 95% bootstrap interval. All None where a value was not finite."""

    mean: float | None
    low: float | None
    high: float | None


def effect(
    steered: Sequence[float | None],
    unsteered: Sequence[float | None],
    strata: Sequence[str] | None = None,
    seed: int = 0,
) -> Effect:
    """Mean over questions of log-odds(matching : other), steered minus unsteered.

    strata: of each question, its matching answer. Strata then weigh alike, and questions are resampled within them: what
    steering adds to liking one answer, such as "B", enters them with opposite signs and cancels, in the mean
    and in the interval's width. What is left is the behaviour.
    """
    return _bootstrap([steered], [unsteered], strata, seed)


def interaction(
    together: Sequence[float | None],
    alone: Sequence[Sequence[float | None]],
    unsteered: Sequence[float | None],
    strata: Sequence[str] | None = None,
    seed: int = 0,
) -> Effect:
    """What vectors do together beyond the sum of what each does alone, on the same questions:

    (together - unsteered) - sum_i (alone_i - unsteered), in nats; 0 where effects add up.
    """
    return _bootstrap([together, *([unsteered] * (len(alone) - 1))], alone, strata, seed)


def _bootstrap(
    plus: Sequence[Sequence[float | None]],
    minus: Sequence[Sequence[float | None]],
    strata: Sequence[str] | None,
    seed: int,
) -> Effect:
    """The mean over strata of the means of sum(plus) - sum(minus), with a percentile interval."""
    every = [*plus, *minus]
    if any(value is None for row in every for value in row):
        return Effect(None, None, None)
    signs = np.array([1.0] * len(plus) + [-1.0] * len(minus))
    values = signs @ np.array(every, dtype=np.float64)
    labels = np.zeros(len(values)) if strata is None else np.array(strata)
    groups = [values[labels == label] for label in sorted(set(labels.tolist()))]
    rng = np.random.default_rng(seed)
    means = np.mean(
        [group[rng.integers(len(group), size=(RESAMPLES, len(group)))].mean(1) for group in groups],
        axis=0,
    )
    low, high = np.quantile(means, (0.025, 0.975))
    mean = np.mean([group.mean() for group in groups])
    return Effect(*(round(float(number), 6) for number in (mean, low, high)))


def cosines(
    vectors: Mapping[str, SteeringVector], layers: Sequence[int]
) -> dict[str, list[list[float]]]:
    """{layer: cosine of every vector with every other}, in the order of ``vectors``."""
    result = {}
    for layer in layers:
        rows = torch.stack([vector.at(layer).double() for vector in vectors.values()])
        unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        gram = (unit @ unit.T).tolist()
        result[str(layer)] = [[round(value, 6) for value in row] for row in gram]
    return result
