"""Numbers of other libraries are numbers: numpy's, and tensors of no dimensions. Booleans and text are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerfast import (
    AfterSequence,
    First,
    Plan,
    Positions,
    Schedule,
    SteeringVector,
    Term,
    Test,
    extract_corpora,
    steer,
)
from steerfast.extraction import with_stream_norms
from steerfast.plans.fields import number, whole, wholes

ROWS = torch.arange(1.0, 13.0).reshape(3, 4)
V = SteeringVector("v", {layer: ROWS[layer] for layer in range(3)}, {0: 1.0, 1: 1.0, 2: 1.0})


@pytest.mark.parametrize(
    "two",
    [
        2,
        2.0,
        np.float64(2),
        np.float32(2),
        np.float16(2),
        np.int64(2),
        np.uint8(2),
        torch.tensor(2),
        torch.tensor(2.0),
        torch.tensor(2.0, dtype=torch.bfloat16),
        np.array(2.0)[()],
    ],
    ids=repr,
)
def test_a_coefficient_of_any_kind(two):
    assert number("it", two) == 2.0
    assert type(number("it", two)) is float
    assert steer(V, two, layers=[1]) == steer(V, 2.0, layers=[1])


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), "2", None, [2], 2j, torch.ones(1), np.ones(1)],
    ids=repr,
)
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="it is a number, got"):
        number("it", value)
    with pytest.raises(TypeError, match="it is an integer, got"):
        whole("it", value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        np.float32("inf"),
        torch.tensor(float("nan")),
        10**400,
        -(10**400),
    ],
)
def test_what_is_not_finite(value):
    with pytest.raises(ValueError, match="must be finite"):
        number("it", value)


@pytest.mark.parametrize("value", [1.0, np.float64(1), torch.tensor(1.0)], ids=repr)
def test_a_float_is_no_integer(value):
    with pytest.raises(TypeError, match="it is an integer, got"):
        whole("it", value)


@pytest.mark.parametrize(
    "layers",
    [
        1,
        np.int64(1),
        torch.tensor(1),
        [1],
        (1,),
        {1},
        range(1, 2),
        np.arange(1, 2),
        [np.int32(1)],
        torch.tensor([1]),
        (layer for layer in [1]),
        np.array(1),
    ],
    ids=lambda layers: type(layers).__name__,  # a generator's repr has its address
)
def test_layers_of_any_kind(layers):
    plan = steer(V, 2.0, layers=layers)
    assert plan.layers == (1,)
    assert plan == Plan((Term(V, 2.0, (1,)),))


@pytest.mark.parametrize("layers", ["1", ["1"], [1.0], [True], np.array([1.0]), [None]], ids=repr)
def test_what_names_no_layers(layers):
    with pytest.raises(TypeError, match="each of the layers of 'v' is an integer"):
        steer(V, layers=layers)


@pytest.mark.parametrize(
    "layers", [-1, [-2], (0, -3), np.int64(-2), torch.tensor([-2]), range(-2, 0)], ids=range(6)
)
def test_layers_are_not_counted_from_the_end(layers):
    """A plan does not know where its model ends; of how many layers to take it away is said."""
    message = r"has no layer -\d; it has 0\.\.2; layers count from 0.* -\d from the end is num_hidden_layers - \d"
    for make in (
        lambda: steer(V, layers=layers),
        lambda: Term(V, operator="ablate", layers=layers),
        lambda: V.select(layers),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="counted from 0, got -2"):
        Test("cosine", V, -2)
    with pytest.raises(ValueError, match="layers are integers from 0"):
        SteeringVector("w", {-1: ROWS[0]})


def test_places_of_any_kind():
    two, three = np.int64(2), torch.tensor(3)
    assert Positions(two, three) == Positions(2, 3)
    assert First(two) == First(2)
    assert AfterSequence(np.array([2, 3])) == AfterSequence((2, 3)) == AfterSequence([two, three])
    assert Schedule(((two, np.float32(0.5)),)) == Schedule(((2, 0.5),))
    assert Test("cosine", V, np.int64(1)) == Test("cosine", V, 1)
    assert wholes("it", np.arange(3)) == (0, 1, 2)
    for one in (Positions(two), First(two), AfterSequence([two])):
        assert "int64" not in repr(one)


@pytest.mark.parametrize(
    "directions",
    [
        ROWS,
        list(ROWS),
        tuple(ROWS),
        ROWS.numpy(),
        {np.int64(layer): ROWS[layer] for layer in range(3)},
        {layer: ROWS[layer].tolist() for layer in range(3)},
        ROWS.double().numpy(),
        iter(ROWS),
    ],
)
def test_directions_of_any_kind(directions):
    made = SteeringVector("w", directions)
    assert made.layers == (0, 1, 2)
    assert all(torch.equal(made.at(layer), ROWS[layer]) for layer in range(3))
    assert all(type(layer) is int for layer in made.layers)
    assert made.select(1).layers == made.select(np.array([1])).layers == (1,)


def test_a_vector_that_would_not_learn_is_refused():
    learns = torch.nn.Parameter(torch.ones(4))
    for directions in ({0: learns}, {0: 2 * learns}, [torch.ones(4), learns]):
        with pytest.raises(ValueError, match=r"requires grad at layer \d, but a vector is a copy"):
            SteeringVector("w", directions)
    made = SteeringVector("w", {0: learns.detach()})
    assert torch.equal(made.at(0), torch.ones(4))


@pytest.mark.parametrize("texts", ["essays.txt", b"essays", "one text"])
def test_one_text_where_many_are_wanted_is_refused(texts):
    """A str is an iterable of its letters, each of which would be a text."""
    with pytest.raises(TypeError, match="takes an iterable of texts"):
        extract_corpora(None, None, texts, ["a"], name="v")
    with pytest.raises(TypeError, match="takes an iterable of texts"):
        extract_corpora(None, None, ["a"], texts, name="v")
    with pytest.raises(TypeError, match="takes an iterable of texts"):
        with_stream_norms(V, None, None, texts)


@pytest.mark.parametrize(
    "eight", [8, np.int8(8), np.uint8(8), torch.tensor(8, dtype=torch.int8)], ids=repr
)
def test_schedules_from_numbers_of_any_kind(eight):
    """Small integers would overflow in the arithmetic of the points."""
    assert Schedule.decay(eight) == Schedule.decay(8)
    assert Schedule.window(np.uint8(0), eight) == Schedule.window(0, 8)
    assert Schedule.ramp(np.uint8(0), eight) == Schedule.ramp(0, 8)
    assert Schedule.table([1.0, 0.5], eight) == Schedule.table([1.0, 0.5], 8)
    assert Schedule.decay(np.int8(60)).points == Schedule.decay(60).points


def test_what_is_no_half_life():
    with pytest.raises(TypeError, match="a half-life is a number"):
        Schedule.decay(True)
    with pytest.raises(ValueError, match="a half-life is beyond float64"):
        Schedule.decay(10**400)
    with pytest.raises(TypeError, match="a window's start is an integer"):
        Schedule.window(torch.tensor(True), 8)


def test_a_complex_direction_is_refused():
    with pytest.raises(ValueError, match="complex at layer 1"):
        SteeringVector("c", {1: torch.tensor([1 + 5j, 2.0])})
