"""Effects and their intervals: by hand, and as often as they say."""

from __future__ import annotations

import random

import pytest
import torch

from steerfast import SteeringVector
from steerfast.experiments import effects


def test_effects_and_interactions_by_hand():
    plain = [0.0, 1.0, 2.0, -1.0]
    steered = [1.0, 2.5, 3.0, 0.5]
    found = effects.effect(steered, plain)
    assert found.mean == pytest.approx(1.25)
    assert 1.0 <= found.low <= found.mean <= found.high <= 1.5
    assert effects.effect(steered, plain) == found, "the same seed resamples alike"
    one, other = [0.5, 1.5, 2.0, -1.0], [0.0, 1.5, 2.5, 0.0]
    expected = sum(
        (t - p) - (a - p) - (b - p) for t, p, a, b in zip(steered, plain, one, other, strict=True)
    )
    assert effects.interaction(steered, [one, other], plain).mean == pytest.approx(expected / 4)
    assert effects.effect([None, 1.0], [0.0, 0.0]) == (None, None, None)


def test_liking_one_answer_cancels_between_strata():
    """Log-odds of the matching answer, where "A" gains 2 nats and the behaviour 0.1."""
    strata = ["A", "B"] * 10
    noise = [0.01 * (number % 3 - 1) for number in range(20)]
    steered = [
        (2.0 if answer == "A" else -2.0) + 0.1 + each
        for answer, each in zip(strata, noise, strict=True)
    ]
    found = effects.effect(steered, [0.0] * 20, strata)
    assert 0.08 < found.low < found.mean < found.high < 0.12
    blind = effects.effect(steered, [0.0] * 20)
    assert blind.low < -0.5
    assert blind.mean == pytest.approx(found.mean, abs=1e-5)
    # Also where there are more of one answer.
    uneven = effects.effect(steered[:9] + steered[10::2], [0.0] * 14, strata[:9] + strata[10::2])
    assert 0.08 < uneven.mean < 0.12


def test_an_interval_covers_as_often_as_it_says():
    """Of 300 experiments with a known mean, about 95% of intervals hold it."""
    rng = random.Random(1)
    held = 0
    for trial in range(300):
        values = [rng.gauss(0.3, 1.0) for _ in range(60)]
        _, low, high = effects.effect(values, [0.0] * 60, seed=trial)
        held += low <= 0.3 <= high
    assert 270 <= held <= 297


def test_cosines_of_known_vectors():
    vectors = {
        "x": SteeringVector("x", {3: torch.tensor([2.0, 0.0])}),
        "y": SteeringVector("y", {3: torch.tensor([-3.0, 3.0])}),
    }
    (matrix,) = effects.cosines(vectors, [3]).values()
    assert matrix[0][1] == pytest.approx(-(0.5**0.5), abs=1e-6)
