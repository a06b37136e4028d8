"""Files that the real packages wrote (tests/io/files/README.md), against what those packages computed with them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_steering import steered_logits
from tiny_llama import tiny_llama

from steerfast import load, steer

FILES = Path(__file__).parents[1] / "files"


@pytest.fixture(scope="module")
def logits():
    with np.load(FILES / "logits.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("name", ["repeng", "steering_vectors"])
def test_logits_are_those_of_the_package(name, logits):
    vector = load(FILES / f"{name}{'.gguf' if name == 'repeng' else '.pt'}")
    assert vector.layers == ((1, 2, 3) if name == "repeng" else (1, 2))
    model = tiny_llama(hidden=16, layers=4)
    torch.testing.assert_close(steered_logits(model, steer(vector, 1.5)), logits[name])
    shifted = load(FILES / f"{name}{'.gguf' if name == 'repeng' else '.pt'}", layers_are="inputs")
    assert (steered_logits(model, steer(shifted, 1.5)) - logits[name]).abs().max() > 0.1


def test_an_object_in_a_file_is_refused_with_the_way_out():
    with pytest.raises(
        ValueError,
        match=r"needs steering_vectors\.steering_vector\.SteeringVector.*give the object itself",
    ):
        load(FILES / "steering_vectors_object.pt")
    given = load(FILES / "steering_vectors.pt")
    activations = {layer: given.at(layer) for layer in given.layers}
    same = load(SimpleNamespace(layer_activations=activations, layer_type="decoder_block"))
    assert same.digest == given.digest
    with pytest.raises(ValueError, match="layer_type 'self_attn'"):
        load(SimpleNamespace(layer_activations=activations, layer_type="self_attn"))


@pytest.mark.parametrize("kind", ["jumprelu", "standard"])
def test_features_are_those_of_sae_lens(kind):
    with np.load(FILES / "features.npz") as file:
        streams, wanted = torch.from_numpy(file["streams"]), torch.from_numpy(file[kind])
    for feature in (0, 7, 23):
        plan = load(f"{FILES}/saelens-{kind}/sae_weights.safetensors#{feature}", target=2.0)
        (term,) = plan.terms
        assert (term.operator, term.steered_layers, term.target) == ("feature_clamp", (2,), 2.0)
        z = streams @ term.read.at(2) + term.bias
        torch.testing.assert_close(torch.where(z > term.threshold, z, 0.0), wanted[:, feature])
        direction = load(f"{FILES}/saelens-{kind}/sae_weights.safetensors#{feature}")
        assert torch.equal(direction.at(2), term.vector.at(2))
        assert direction.provenance["format"] == "SAE feature (SAELens)"
        assert direction.provenance["model"] == "tiny"
    assert wanted.count_nonzero() > 20


class StandardScaler(SimpleNamespace):
    with_mean = True


class LogisticRegression(SimpleNamespace):
    pass


def test_a_probe_decides_as_scikit_learn_does():
    said = json.loads((FILES / "probe.json").read_text())
    steps = [("scale", StandardScaler(**{k: np.array(v) for k, v in said["scaler"].items()})),
             ("probe", LogisticRegression(**{k: np.array(v) for k, v in said["probe"].items()}))]  # fmt: skip
    vector = load(SimpleNamespace(steps=steps), layer=3, name="long")
    assert (vector.name, vector.layers) == ("long", (3,))
    assert vector.provenance["classes"] == ["0", "1"]
    streams, wanted = torch.tensor(said["streams"]), torch.tensor(said["decisions"])
    got = streams @ vector.at(3) + vector.provenance["intercepts"]["3"]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
