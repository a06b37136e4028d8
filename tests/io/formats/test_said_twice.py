"""What a caller says of a file that says it itself, and what is written but would not be read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerfast import SteeringVector, load, save, steer

V = SteeringVector("v", {1: torch.randn(8), 2: torch.randn(8)})


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".svec", ".gguf"])
def test_a_layer_beside_layers(suffix, tmp_path):
    path = save(V, tmp_path / f"v{suffix}")
    with pytest.raises(ValueError, match=r"says its layers itself \(1, 2\).*select"):
        load(path, layer=2)
    assert load(path).select([2]).directions.keys() == {2}


def test_a_layer_beside_an_array_of_layers(tmp_path):
    np.save(tmp_path / "all.npy", np.ones((3, 8), np.float32))
    with pytest.raises(ValueError, match="says its layers itself"):
        load(tmp_path / "all.npy", layer=1, layers_are="outputs")
    np.save(tmp_path / "one.npy", np.ones(8, np.float32))
    assert load(tmp_path / "one.npy", layer=1, layers_are="outputs").directions.keys() == {1}


def test_a_target_for_a_vector(tmp_path):
    with pytest.raises(ValueError, match="target belongs to a feature"):
        load(save(V, tmp_path / "v.safetensors"), target=4.0)


def test_one_position_stays_one(tmp_path):
    positional = SteeringVector("p", {1: torch.randn(1, 8)})
    back = load(save(positional, tmp_path / "p.svec"))
    assert back.at(1).shape == (1, 8)
    with pytest.raises(ValueError, match="positional"):
        steer(back, 1.0)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".svec", ".gguf"])
def test_layers_that_would_not_be_read_are_not_written(suffix, tmp_path):
    with pytest.raises(ValueError, match="beyond 1023"):
        save(SteeringVector("v", {1500: torch.ones(8)}), tmp_path / f"v{suffix}")
    assert not list(tmp_path.iterdir())
    big = save(SteeringVector("v", {1500: torch.ones(8)}), tmp_path / "v.safetensors")
    assert load(big).directions.keys() == {1500}


def test_the_suffix_may_be_in_capitals(tmp_path):
    assert load(save(V, tmp_path / "v.NPZ")).directions.keys() == {1, 2}
