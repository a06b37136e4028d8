"""Choosing layers and coefficients from a grid of scored points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steerfast.experiments.answers import Score

Sign = Literal[-1, 1]
SIGNS: tuple[Sign, Sign] = (-1, 1)
Criterion = Literal["matching", "log_odds"]


@dataclass(frozen=True)
class GridPoint:
    """One behaviour's validation questions under its vector at a layer with a coefficient.

    usable: False if the point ended its sweep (``Score.ends_sweep``). effect: the mean change of log p(matching) - log p(other),
    nats; None where it is not finite.
    """

    layer: int
    coefficient: float
    score: Score
    usable: bool
    effect: float | None = None


def best(points: Iterable[GridPoint], sign: Sign, by: Criterion = "matching") -> GridPoint | None:
    """The point that steers most in the direction of ``sign`` without breaking the model.

    Positive: the greatest matching score; negative: the least (by="log_odds": effect on the log-odds, which tells more where a
    model gives one answer to all). Of equals the smallest coefficient. None if no point is usable.
    """

    def value(point: GridPoint) -> float:
        if by == "matching":
            return point.score.matches
        return point.effect if point.effect is not None else -sign * math.inf

    usable = [point for point in points if point.coefficient * sign > 0 and point.usable]
    return min(
        usable,
        key=lambda point: (-sign * value(point), abs(point.coefficient), point.layer),
        default=None,
    )


def chosen(
    points: Mapping[str, Sequence[GridPoint]], layers: Sequence[int], by: Criterion = "matching"
) -> dict[str, dict[int, dict[Sign, float]]]:
    """{behaviour: {layer: {sign: coefficient}}}: the best of each layer and sign; without a usable point there is none."""
    result: dict[str, dict[int, dict[Sign, float]]] = {}
    for behaviour, here in points.items():
        for layer in layers:
            found: dict[Sign, float] = {}
            for sign in SIGNS:
                point = best((one for one in here if one.layer == layer), sign, by)
                if point is not None:
                    found[sign] = point.coefficient
            result.setdefault(behaviour, {})[layer] = found
    return result
