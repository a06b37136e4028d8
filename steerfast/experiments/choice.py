"""Choosing layers and coefficients from a grid of scored points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steerfast.experiments.answers import Score

Sign = Literal[-1, 1]


@dataclass(frozen=True)
class GridPoint:
    """One behaviour's validation score under its vector at a layer with a coefficient."""

    layer: int
    coefficient: float
    score: Score


def best(points: Iterable[GridPoint], sign: Sign) -> GridPoint | None:
    """The point that steers most in the direction of ``sign`` without breaking the model.

    Positive: the greatest matching score; negative: the least; of equals the smallest coefficient. Points with
    mode collapse or more than 10 faulty answers do not count, whatever they score. None if none is left.
    """
    usable = [
        point for point in points if point.coefficient * sign > 0 and not point.score.ends_sweep
    ]
    return min(
        usable,
        key=lambda point: (-sign * point.score.matches, abs(point.coefficient), point.layer),
        default=None,
    )


def chosen(
    points: Mapping[str, Sequence[GridPoint]], layers: Sequence[int]
) -> dict[str, dict[int, dict[Sign, float]]]:
    """{behaviour: {layer: {sign: coefficient}}}: the best of each layer and sign. A pair without a usable point is left out."""
    result: dict[str, dict[int, dict[Sign, float]]] = {}
    for behaviour, here in points.items():
        for layer in layers:
            found = {
                sign: best((point for point in here if point.layer == layer), sign)
                for sign in (-1, 1)
            }
            result.setdefault(behaviour, {})[layer] = {
                sign: point.coefficient  # type: ignore[misc]
                for sign, point in found.items()
                if point is not None
            }
    return result
