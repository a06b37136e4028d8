"""What a vector looks like, in numbers: norms and outlier channels by layer, cosines between two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.plans.vector import SteeringVector

OUTLIER = 8.0  # times the root mean square of the direction's other values
MOST_OUTLIERS = 5


class Look(NamedTuple):
    """norm: of the direction (of all positions together). share: of the stream's norm there, where the vector knows it.
    outliers: (channel, value), the greatest first."""

    layer: int
    norm: float
    share: float | None
    outliers: list[tuple[int, float]]


def looks(vector: SteeringVector) -> list[Look]:
    """One for each layer. A channel is an outlier where its value is beyond 8 times the root mean square of the others':
    such a direction acts through single channels, and its norm says little about the rest."""
    found = []
    for layer in vector.layers:
        direction = vector.at(layer).double()
        norm = float(direction.norm())
        known = vector.stream_norms.get(layer)
        share = None if known is None else norm / known
        found.append(Look(layer, norm, share, _outliers(direction)))
    return found


def _outliers(direction: Tensor) -> list[tuple[int, float]]:
    squares = direction.reshape(-1, direction.shape[-1]).square().mean(0)
    size = len(squares)
    if size < 2:
        return []
    others = (squares.sum() - squares).clamp(min=0) / (size - 1)
    beyond = squares > OUTLIER**2 * others
    ranked = sorted(torch.nonzero(beyond)[:, 0].tolist(), key=lambda at: -float(squares[at]))
    values = direction.reshape(-1, size).mean(0)
    return [(at, float(values[at])) for at in ranked[:MOST_OUTLIERS]]


def cosines(one: SteeringVector, other: SteeringVector) -> dict[int, float | None]:
    """By layer that both have; None where one of them is zero. Empty for vectors of other shapes."""
    found: dict[int, float | None] = {}
    if one.hidden_size != other.hidden_size or one.positions != other.positions:
        return found
    for layer in one.layers:
        if layer in other.layers:
            a, b = one.at(layer).double().reshape(-1), other.at(layer).double().reshape(-1)
            length = float(a.norm() * b.norm())
            found[layer] = float(a @ b) / length if length else None
    return found
