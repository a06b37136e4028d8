"""Selectors and schedules: their spans and gains, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerfast import AfterSequence, First, Plan, Positions, Schedule, SteeringVector, Term, steer
from steerfast.plans.selectors import final_token

V = SteeringVector("v", {0: torch.ones(4), 1: torch.ones(4)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Positions(3, 3), ValueError, "selects nothing"),
        (lambda: Positions(-1, -2), ValueError, "selects nothing"),
        (lambda: Positions("prompt_end", -1), ValueError, "selects nothing"),
        (lambda: Positions(None), TypeError, "start of Positions"),
        (lambda: Positions(1.0), TypeError, "start of Positions"),
        (lambda: Positions(True), TypeError, "start of Positions"),
        (lambda: Positions(0, "end"), TypeError, "stop of Positions"),
        (lambda: First(0), ValueError, "from 1"),
        (lambda: First(2.0), TypeError, r"positions of First is an integer, got 2\.0"),
        (lambda: AfterSequence(()), ValueError, "one or more token ids"),
        (lambda: AfterSequence((3, -1)), ValueError, "one or more token ids"),
        (lambda: AfterSequence((3, 1.0)), TypeError, r"of a sequence is an integer, got 1\.0"),
        (lambda: steer(V, select="prompts"), ValueError, "unknown selector 'prompts'; known: all"),
        (lambda: steer(V, select=3), ValueError, "unknown selector 3"),
    ],
)
def test_what_is_no_selector(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_positional_vectors_belong_to_first():
    written = SteeringVector("w", {0: torch.ones(3, 4)})
    steer(written, select=First(3))
    with pytest.raises(ValueError, match="First"):
        steer(written)
    with pytest.raises(ValueError, match="3"):
        steer(written, select=First(4))


def test_a_sequence_is_found_at_its_last_place():
    assert final_token([1, 2, 3, 1, 2], (1, 2)) == 4
    assert final_token([1, 1, 1], (1, 1)) == 2
    assert final_token([1, 2, 3], (1, 2, 3)) == 2
    with pytest.raises(ValueError, match="does not contain"):
        final_token([1, 2], (1, 2, 3))


def test_plans_that_act_alike_are_equal_however_they_are_written():
    same = [("prompt", Positions(0, "prompt_end")), ("generated", Positions("prompt_end"))]
    same += [("after_prompt", Positions(-1)), ("all", Positions(0)), (First(2), Positions(0, 2))]
    same += [("last_prompt_token", Positions(-1, "prompt_end"))]
    for one, two in same:
        assert steer(V, select=one) == steer(V, select=two)
    apart = ["all", "prompt", "generated", "after_prompt", "last_prompt_token"]
    apart += [Positions(1), Positions(1, 2), Positions(-2), First(1), AfterSequence((1,))]
    apart += [AfterSequence((1, 2)), Positions(1, "prompt_end")]
    assert len({steer(V, select=select).digest for select in apart}) == len(apart)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule(()), ValueError, "1 to 256 points"),
        (lambda: Schedule(tuple((i, 1.0) for i in range(257))), ValueError, "got 257"),
        (lambda: Schedule(((1, 1.0), (1, 2.0))), ValueError, "ascend"),
        (lambda: Schedule(((2, 1.0), (1, 2.0))), ValueError, "ascend"),
        (lambda: Schedule(((0.5, 1.0),)), TypeError, r"integer, got 0\.5"),
        (lambda: Schedule(((0, math.nan),)), ValueError, "finite"),
        (lambda: Schedule(((0, "1"),)), TypeError, "gain"),
        (lambda: Schedule.window(2, 2), ValueError, "empty"),
        (lambda: Schedule.decay(0.0), ValueError, "half-life"),
        (lambda: Schedule.decay(math.inf), ValueError, "half-life"),
        (lambda: Plan((Term(V),), schedule=[(0, 1.0)]), TypeError, "schedule is a Schedule"),
        (lambda: Plan((Term(V),), condition="yes"), TypeError, "condition is a Condition"),
    ],
)
def test_what_is_no_schedule(make, error, message):
    with pytest.raises(error, match=message):
        make()


@settings(max_examples=100, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(-40, 40), st.floats(-4, 4)), min_size=1, unique_by=lambda p: p[0]
    ),
    st.integers(-60, 60),
)
def test_a_schedule_goes_straight_from_point_to_point(points, offset):
    points = sorted(points)
    found = Schedule(tuple(points)).at(offset)
    inside = torch.tensor([float(place) for place, _ in points], dtype=torch.float64)
    if offset <= inside[0]:
        expected = points[0][1]
    elif offset >= inside[-1]:
        expected = points[-1][1]
    else:
        above = next(i for i, (place, _) in enumerate(points) if place >= offset)
        (x0, y0), (x1, y1) = points[above - 1], points[above]
        expected = y0 * (x1 - offset) / (x1 - x0) + y1 * (offset - x0) / (x1 - x0)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("half_life", [0.5, 1, 3, 8, 20, 200])
def test_decay_halves(half_life):
    decay = Schedule.decay(half_life, start=2, floor=0.25)
    assert decay.at(-9) == decay.at(2) == 1.0
    for offset in range(2, 2 + int(9 * half_life)):
        exact = 0.25 + 0.75 * 2 ** (-(offset - 2) / half_life)
        assert decay.at(offset) == pytest.approx(exact, rel=0.002 if half_life > 8 else 1e-12)
    assert decay.at(10**6) == 0.25
