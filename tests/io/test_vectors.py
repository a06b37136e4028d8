"""Vector files: round trip, and every way in which a file can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steerfast import SteeringVector, load_vector, save_vector


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
