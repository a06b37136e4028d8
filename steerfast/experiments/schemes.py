"""The paper's three ways to steer by several behaviours, each a small function from vectors to a plan.

h_l' = h_l + c v_l at every token, raw (un-normalised) vectors, at the output of layer l (van der Weij, Poesio,
Schoots 2024). ``scale`` other than ``raw`` is ours: ``stream`` makes coefficients comparable between models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from steerfast.plans.plan import Plan, steer
from steerfast.plans.term import Scale, Term
from steerfast.plans.vector import SteeringVector

Reduce = Literal["sum", "mean"]


def individual(
    vector: SteeringVector, layer: int | Sequence[int], coefficient: float, *, scale: Scale = "raw"
) -> Plan:
    """One vector, at one layer or at several with one shared coefficient: c v_l."""
    layers = (layer,) if isinstance(layer, int) else layer
    return steer(vector, coefficient, layers=layers, scale=scale)


def combined(
    vectors: Mapping[str, SteeringVector],
    layer: int,
    coefficients: Mapping[str, float],
    *,
    reduce: Reduce = "sum",
    scale: Scale = "raw",
) -> Plan:
    """Several vectors merged into one at one layer: sum_b m_b v_b, or its mean (divided by how many they are).

    coefficients: m_b by behaviour; +-1 is the paper's "unweighted", the individually best ones "weighted".
    Raises ValueError unless vectors and coefficients name the same behaviours.
    """
    if set(vectors) != set(coefficients) or not vectors:
        raise ValueError(
            f"combined() has vectors for {sorted(vectors)} and coefficients for {sorted(coefficients)}; "
            "give one coefficient per vector"
        )
    if reduce not in ("sum", "mean"):
        raise ValueError(f"unknown reduce {reduce!r}; known: sum, mean")
    share = len(vectors) if reduce == "mean" else 1
    return Plan(
        tuple(
            Term(vector, coefficients[name] / share, (layer,), scale)
            for name, vector in vectors.items()
        )
    )


def simultaneous(
    vectors: Mapping[str, SteeringVector],
    layers: Mapping[str, int],
    coefficient: float,
    *,
    scale: Scale = "raw",
) -> Plan:
    """Several vectors, each at its own layer, under one global coefficient: c v_b at layer l_b.

    Raises ValueError unless vectors and layers name the same behaviours.
    """
    if set(vectors) != set(layers) or not vectors:
        raise ValueError(
            f"simultaneous() has vectors for {sorted(vectors)} and layers for {sorted(layers)}; give one layer per vector"
        )
    return Plan(
        tuple(Term(vector, coefficient, (layers[name],), scale) for name, vector in vectors.items())
    )
