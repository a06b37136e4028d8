"""Directions of attention heads, ``.svec`` files, payloads of other engines."""

from __future__ import annotations

import base64
import json
import sys
import types

import numpy as np
import pytest
import torch
from plain_steering import logits_with, steered_logits
from tiny_llama import tiny_llama
from torch import nn

from steerfast import First, SteeringVector, load, save, steer
from steerfast.io.formats.heads import from_heads

D = 16


def model():
    return tiny_llama(hidden=D, layers=4)


# -- heads


def test_head_directions_are_what_o_proj_makes_of_them():
    llama = model()
    directions = {1: torch.randn(4, D // 4), 2: torch.randn(D)}
    plan = from_heads(directions, llama, name="truth", coefficient=1.5)
    assert [term.site for term in plan.terms] == ["resid_mid"]
    assert "o_proj" in plan.vectors[0].provenance["layer_convention"]
    hooks = [
        llama.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, v=v: (args[0] + 1.5 * v.reshape(-1),)
        )
        for layer, v in directions.items()
    ]
    wanted = logits_with(llama)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(steered_logits(llama, plan), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - logits_with(llama)).abs().max() > 1e-2


def test_heads_without_an_equivalent_are_refused():
    llama = model()
    with pytest.raises(ValueError, match="have 3 values; the heads of the model have 16"):
        from_heads({1: torch.ones(3)}, llama)
    with pytest.raises(ValueError, match="the model has layers 0 to 3"):
        from_heads({4: torch.ones(D)}, llama)
    llama.model.layers[1].pre_feedforward_layernorm = nn.Identity()
    with pytest.raises(ValueError, match="has a norm behind its attention"):
        from_heads({1: torch.ones(D)}, llama)
    llama.model.layers[2].self_attn.o_proj = nn.Identity()
    with pytest.raises(ValueError, match=r"no self_attn\.o_proj with a plain weight"):
        from_heads({2: torch.ones(D)}, llama)
    with pytest.raises(ValueError, match=r"Linear has no model\.layers"):
        from_heads({0: torch.ones(D)}, nn.Linear(2, 2))


# -- .svec


def test_svec_of_both_libraries(tmp_path):
    """AISteer360 adds at the output of layer l, activation-steering at its input: its LeashLayer runs before the layer."""
    rows = torch.randn(2, D)
    data = {
        "model_type": "llama",
        "directions": {"2": rows[0].tolist(), "3": [rows[1].tolist()]},
        "explained_variances": {"2": 0.5},
    }
    path = tmp_path / "refusal.svec"
    path.write_text(json.dumps(data))
    llama = model()
    with pytest.warns(UserWarning, match="activation-steering adds it at the input"):
        vector = load(path)
    assert (vector.name, vector.layers, vector.provenance["model_type"]) == (
        "refusal",
        (2, 3),
        "llama",
    )
    wanted = logits_with(llama, {2: rows[0], 3: rows[1]})
    torch.testing.assert_close(steered_logits(llama, steer(vector, 1.0)), wanted)
    early = load(path, layers_are="inputs")
    assert early.layers == (1, 2)
    wanted = logits_with(llama, inputs={2: rows[0], 3: rows[1]})
    torch.testing.assert_close(steered_logits(llama, steer(early, 1.0)), wanted)


def test_svec_that_we_write_is_theirs(tmp_path):
    vector = SteeringVector("joy", {1: torch.randn(D)}, {1: 2.0})
    data = json.loads(save(vector, tmp_path / "joy.svec", layers_are="inputs").read_text())
    # what activation-steering's load does with it
    assert {int(k): np.array(v).shape for k, v in data["directions"].items()} == {2: (D,)}
    assert {int(k): v for k, v in data["explained_variances"].items()} == {}
    assert data["model_type"] == "unknown"


SVEC = {
    "its directions are of attention heads": {"directions": {"1": [[1.0]]}, "num_heads": 4},
    "it has no directions": {"directions": {}},
    "'directions' is an object": {"directions": [1.0]},
    "names layer '01'": {"directions": {"01": [1.0]}},
    "names layer 1024": {"directions": {"1024": [1.0]}},
    "the direction of layer 1 is a list": {"directions": {"1": 1.0}},
    "is a finite number, got '1'": {"directions": {"1": ["1"]}},
    "is a finite number, got True": {"directions": {"1": [True]}},
    "lines of other lengths": {"directions": {"1": [[1.0], [1.0, 2.0]]}},
    "NaN or infinity": {"directions": {"1": [1e300]}},
    "layers_are is 'outputs'": {"directions": {"1": [1.0]}, "steerfast": {"name": "a", "layers_are": "x"}},
}  # fmt: skip


@pytest.mark.parametrize("message", SVEC)
@pytest.mark.filterwarnings("ignore:.* does not say what its layers mean")
def test_a_svec_that_is_broken(message, tmp_path):
    (tmp_path / "v.svec").write_text(json.dumps(SVEC[message]))
    with pytest.raises(ValueError, match=r"v\.svec cannot be loaded") as caught:
        load(tmp_path / "v.svec")
    assert message in str(caught.value)
    (tmp_path / "v.svec").write_text('{"directions": {"1": [NaN]}}')
    with pytest.raises(ValueError, match="holds NaN, which is no number of JSON"):
        load(tmp_path / "v.svec")


# -- payloads


def coded(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def lens(values, layers, **more):
    """vllm-lens' SteeringVector.model_dump(), uncompressed."""
    bits = torch.as_tensor(values).bfloat16()
    activations = {"data": coded(bits.view(torch.int16).numpy()), "dtype": "int16", "original_dtype": "torch.bfloat16",
                   "shape": list(bits.shape)}  # fmt: skip
    return {"activations": activations, "layer_indices": layers, "scale": 2.0, "norm_match": False,
            "position_indices": None, **more}  # fmt: skip


def stored(tmp_path, data):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    return path


def test_vllm_lens_becomes_a_plan(tmp_path):
    rows = torch.randn(2, D).bfloat16().float()
    plan = load(stored(tmp_path, lens(rows, [3, 1])))
    llama = model()
    wanted = logits_with(llama, {3: 2.0 * rows[0], 1: 2.0 * rows[1]})
    torch.testing.assert_close(steered_logits(llama, plan), wanted)
    assert load(stored(tmp_path, lens(rows, [3, 1], norm_match=True))).finish == "preserve"
    by_position = load(stored(tmp_path, lens(torch.ones(1, 2, D), [3], position_indices=[0, 1])))
    assert by_position.terms[0].select == First(2)


def test_vllm_lens_packed_by_zstd(tmp_path, monkeypatch):
    """A stand-in for the package, which is not installed: what it unpacks is bounded by the shape."""
    data = lens(torch.ones(1, D), [1])
    data["activations"]["compression"] = "zstd"
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        load(stored(tmp_path, data))
    asked = []

    class Decompressor:
        def stream_reader(self, source):
            asked.append(source)
            return types.SimpleNamespace(read=lambda most: asked.append(most) or source[:most])

    fake = types.SimpleNamespace(ZstdDecompressor=Decompressor, ZstdError=OSError)
    monkeypatch.setitem(sys.modules, "zstandard", fake)
    assert load(stored(tmp_path, data)).terms[0].vector.at(1).tolist() == [1.0] * D
    assert asked[1] == 2 * D + 1


def test_directions_of_easysteer_and_hotwire(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2, D)).astype("<f4")
    tensors = {f"layer.{at + 1}": {"shape": [D], "data": coded(row)} for at, row in enumerate(rows)}
    data = {"version": 1, "kind": "direction", "tensors": tensors, "extra": {}, "sha256": "0"}
    vector = load(stored(tmp_path, data), name="happy")
    assert (vector.name, vector.layers) == ("happy", (1, 2))
    assert np.array_equal(vector.at(2), rows[1])
    vector = load(stored(tmp_path, {"dtype": "float32", "shape": [2, D], "data_b64": coded(rows)}))
    assert vector.layers == (0, 1)
    assert vector.provenance["format"] == "hotwire payload"


def test_plans_and_vectors_of_ours(tmp_path):
    vector = SteeringVector("joy", {1: torch.ones(4)})
    plan = steer(vector, 2.0)
    assert load(save(plan, tmp_path / "plan.json")) == plan
    with pytest.raises(ValueError, match="a plan's layers are outputs"):
        save(plan, tmp_path / "plan.json", layers_are="outputs")
    with pytest.raises(TypeError, match="save writes a SteeringVector or a Plan, got dict"):
        save({}, tmp_path / "v.npz")
    with pytest.raises(ValueError, match=r"a vector is written as .*'v\.onnx' names none"):
        save(vector, tmp_path / "v.onnx")


ONE = {"shape": [1, 4], "dtype": "float32", "data": coded(np.ones(4, "<f4"))}
PAYLOADS = {
    "neither a plan nor a vector": {"a": 1},
    "is not base64": lens(torch.ones(1, 4), [1]) | {"activations": {**ONE, "data": "A*=="}},
    "takes 32 bytes, but there are 16": lens(torch.ones(1, 4), [1]) | {"activations": {**ONE, "shape": [2, 4]}},
    "a vector has 1 to": lens(torch.ones(1, 4), [1]) | {"activations": {**ONE, "shape": [2**40, 4]}},
    "of type 'object'": lens(torch.ones(1, 4), [1]) | {"activations": {**ONE, "dtype": "object"}},
    "compressed by 'gzip'": lens(torch.ones(1, 4), [1]) | {"activations": {**ONE, "compression": "gzip"}},
    "are not [layers, D]": lens(torch.ones(1, 4), [1, 2]),
    "of layers [1, 1]": lens(torch.ones(2, 4), [1, 1]),
    "names layer 5000": lens(torch.ones(1, 4), [5000]),
    "position_indices are not 0": lens(torch.ones(1, 2, 4), [1], position_indices=[3, 4]),
    "'scale' is a finite number": lens(torch.ones(1, 4), [1], scale="2"),
    "'norm_match' is true or false": lens(torch.ones(1, 4), [1], norm_match=1),
    "of kind 'loreft'": {"kind": "loreft", "tensors": {}},
    "directions are 'layer.<number>'": {"kind": "direction", "tensors": {"weight": {}}},
    "the shape of tensor 'layer.1' is a list": {"kind": "direction", "tensors": {"layer.1": {"data": ""}}},
}  # fmt: skip


@pytest.mark.parametrize("message", PAYLOADS)
def test_a_payload_that_is_broken(message, tmp_path):
    with pytest.raises(ValueError, match=r"p\.json cannot be loaded") as caught:
        load(stored(tmp_path, PAYLOADS[message]))
    assert message in str(caught.value)
