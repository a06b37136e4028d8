"""SteeringVector: what it accepts, what it keeps."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from steerfast import SteeringVector


def make(**changes):
    given = {
        "name": "joy",
        "directions": {3: torch.arange(4.0), 1: torch.ones(4)},
        "stream_norms": {1: 2.0},
        "provenance": {"model": "m"},
    }
    return SteeringVector(**{**given, **changes})


def test_layers_are_sorted_and_values_are_its_own():
    source = torch.ones(4, dtype=torch.bfloat16)
    vector = make(directions={2: source, 0: 2 * source})
    source.zero_()
    assert vector.layers == (0, 2)
    assert vector.hidden_size == 4
    assert torch.equal(vector.at(2), torch.ones(4))
    with pytest.raises(TypeError):
        vector.directions[5] = torch.ones(4)


def test_digest_is_of_content():
    assert make().digest == make(name="other", provenance={}).digest
    assert make().digest != make(stream_norms={1: 2.5}).digest
    changed = {3: torch.arange(4.0), 1: torch.tensor([1.0, 1.0, 1.0, 1.0000001])}
    assert make().digest != make(directions=changed).digest
    assert make() == make()
    assert make() != make(name="other")


def test_copies_and_pickles():
    for again in (copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        assert again == make()
        assert dict(again.provenance) == {"model": "m"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"directions": {}}, "no directions"),
        ({"directions": {-1: torch.ones(4)}}, "layers are integers from 0"),
        ({"directions": {True: torch.ones(4)}}, "layers are integers from 0"),
        ({"directions": {0: torch.ones(2, 3, 4)}}, r"shape \[2, 3, 4\]"),
        ({"directions": {0: torch.tensor(1.0)}}, r"shape \[\]"),
        ({"directions": {0: torch.ones(0, 4)}}, r"shape \[0, 4\]"),
        ({"directions": {0: torch.ones(2, 4), 1: torch.ones(3, 4)}}, "other positions"),
        ({"directions": {0: torch.tensor([1.0, float("nan")])}}, "NaN or infinity at layer 0"),
        ({"directions": {0: torch.tensor([1.0, float("inf")])}}, "NaN or infinity at layer 0"),
        ({"directions": {0: torch.tensor([1e300], dtype=torch.float64)}}, "NaN or infinity"),
        ({"directions": {0: torch.ones(4), 1: torch.ones(5)}}, r"hidden sizes \[4, 5\]"),
        ({"stream_norms": {1: 0.0}}, "must be positive"),
        ({"stream_norms": {1: float("nan")}}, "must be finite"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_select_names_what_is_missing():
    vector = make(directions={layer: torch.ones(4) for layer in (1, 2, 3, 7)})
    assert vector.select([7, 1]).layers == (1, 7)
    with pytest.raises(ValueError, match=r"has no layer 4; it has 1\.\.3, 7"):
        vector.select([4])
