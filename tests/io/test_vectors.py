"""Vector files: round trip, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steerfast import SteeringVector, load_vector, save_vector
from steerfast.io.vectors import vector_from_json, vector_to_json


def vector():
    directions = {2: torch.randn(16, generator=torch.Generator().manual_seed(0)), 5: torch.ones(16)}
    return SteeringVector("joy", directions, {2: 1.5}, {"model": "m", "counts": {"pairs": 3}})


def test_round_trip_is_exact(tmp_path):
    again = load_vector(save_vector(vector(), tmp_path / "deep" / "joy.safetensors"))
    assert again == vector()
    assert all(torch.equal(again.at(layer), vector().at(layer)) for layer in (2, 5))
    assert dict(again.stream_norms) == {2: 1.5}
    assert dict(again.provenance) == {"model": "m", "counts": {"pairs": 3}}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["joy.safetensors"]


def test_other_tools_can_read_it(tmp_path):
    with safe_open(save_vector(vector(), tmp_path / "v.safetensors"), framework="pt") as file:
        assert sorted(file.keys()) == ["directions.2", "directions.5"]
        about = json.loads(file.metadata()["steerfast"])
    assert about["name"] == "joy"
    assert "output of decoder layer l" in about["layer_convention"]


def test_truncated_at_every_length(tmp_path):
    whole = save_vector(vector(), tmp_path / "v.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"cut\.safetensors is truncated or not a safetensors file"
        ):
            load_vector(path)


def test_what_is_no_vector(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vector file at"):
        load_vector(tmp_path / "absent.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a steerfast vector"):
        load_vector(tmp_path / "other.safetensors")
    about = json.dumps({"format": "steerfast.vector/99"})
    save_file({"w": torch.ones(2)}, tmp_path / "newer.safetensors", metadata={"steerfast": about})
    with pytest.raises(ValueError, match=r"this version reads 'steerfast\.vector/1'"):
        load_vector(tmp_path / "newer.safetensors")


# -- what is not written


@pytest.mark.parametrize("name", ["joy.gguf", "joy.pt", "joy.json", "v1.5", "joy.SAFETENSORS"])
def test_another_format_is_refused_by_its_name(name, tmp_path):
    with pytest.raises(ValueError, match=r"is written as \.safetensors") as caught:
        save_vector(vector(), tmp_path / name)
    assert f"{name}.safetensors" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert load_vector(save_vector(vector(), tmp_path / f"{name}.safetensors")) == vector()
    assert load_vector(save_vector(vector(), tmp_path / "bare")) == vector()


WRITTEN = {  # provenance, and what the file says
    "numpy": ({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.str_("x")},
              {"a": 0.5, "b": 3, "c": True, "d": "x"}),
    "arrays": ({"a": np.arange(3), "b": torch.ones(2, 1), "c": torch.tensor(2)},
               {"a": [0, 1, 2], "b": [[1.0], [1.0]], "c": 2}),
    "plain": ({"a": None, "b": [1, "x", {"c": (1, 2)}], "d": {}}, {"a": None, "b": [1, "x", {"c": [1, 2]}], "d": {}}),
    "keys": ({1: "a", np.int64(2): "b"}, {"1": "a", "2": "b"}),
    "paths": ({"a": Path("models") / "x"}, {"a": "models/x"}),
    "letters": ({"a": "\ud800 \u00e9 \x00"}, {"a": "\ud800 \u00e9 \x00"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_provenance_becomes_plain(kind, tmp_path):
    given, plain = WRITTEN[kind]
    one = replace(vector(), provenance=given)
    assert dict(load_vector(save_vector(one, tmp_path / "v.safetensors")).provenance) == plain
    assert dict(vector_from_json(vector_to_json(one)).provenance) == plain


DEEP = []
for _ in range(200):
    DEEP = [DEEP]
REFUSED = {
    r"\['loss'\] is nan": {"loss": float("nan")},
    r"\['a'\]\['b'\]\[1\] is inf": {"a": {"b": [0, np.float64("inf")]}},
    "64 bits do not hold": {"seed": 2**63},
    "has '1' twice": {1: "a", "1": "b"},
    "has the key True": {True: "a"},
    r"has the key \(1, 2\)": {(1, 2): "a"},
    "is bytes": {"a": b"x"},
    "is set": {"a": {1}},
    r"\['when'\] is date": {"when": date(2024, 1, 1)},
    "complex": {"a": 1j},
    "nested more than": {"a": DEEP},
}


@pytest.mark.parametrize("message", REFUSED)
def test_provenance_that_no_reader_takes_is_not_written(message, tmp_path):
    one = replace(vector(), provenance=REFUSED[message])
    path = save_vector(vector(), tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        save_vector(one, path)
    assert "vector 'joy'" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        vector_to_json(one)
    assert load_vector(path) == vector()
    assert list(tmp_path.iterdir()) == [path]


def test_a_layer_that_no_reader_takes_is_not_written(tmp_path):
    far = SteeringVector("far", {10**9: torch.ones(4)})
    with pytest.raises(ValueError, match=r"vector 'far' cannot be saved: .* layers are written"):
        save_vector(far, tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []
