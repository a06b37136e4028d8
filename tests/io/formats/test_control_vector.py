"""GGUF control vectors: as the ``gguf`` package writes and reads them, as llama.cpp adds them, and files that lie."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
import torch
from plain_steering import logits_with, steered_logits
from tiny_llama import tiny_llama

from steerfast import SteeringVector, load, save, steer

gguf = pytest.importorskip("gguf")

D = 16


def written(path, directions, architecture="controlvector", facts=()):
    """As repeng's export_gguf lays a file out."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for key, value in facts:
        writer.add_string(key, value)
    for layer, values in directions.items():
        writer.add_tensor(f"direction.{layer}", np.asarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def directions(layers, seed=0):
    rng = np.random.default_rng(seed)
    return {layer: rng.standard_normal(D).astype(np.float32) for layer in layers}


def test_direction_n_goes_to_the_output_of_layer_n(tmp_path):
    given = directions((1, 2, 3))
    vector = load(written(tmp_path / "joy.gguf", given))
    assert (vector.name, vector.layers) == ("joy", (1, 2, 3))
    assert all(np.array_equal(vector.at(layer), given[layer]) for layer in given)
    assert vector.provenance["model_hint"] == "llama"
    assert "output of layer N" in vector.provenance["layer_convention"]
    model = tiny_llama(hidden=D, layers=4)
    # llama.cpp: build_cvec(cur, il) behind the last residual add of block il, which gives l_out-il
    wanted = logits_with(model, {layer: torch.from_numpy(one) for layer, one in given.items()})
    torch.testing.assert_close(steered_logits(model, steer(vector, 1.0)), wanted)
    elsewhere = logits_with(
        model, inputs={layer: torch.from_numpy(one) for layer, one in given.items()}
    )
    assert (wanted - elsewhere).abs().max() > 0.01  # a shift by one layer would be seen


def test_half_precision_is_read(tmp_path):
    given = {2: np.arange(D, dtype=np.float16) / 3}
    assert np.array_equal(
        load(written(tmp_path / "v.gguf", given)).at(2), given[2].astype(np.float32)
    )


def test_what_is_written_the_package_and_llama_cpp_read(tmp_path):
    vector = SteeringVector(
        "joy", dict(enumerate(torch.randn(4, D))), {2: 1.5}, {"model": "m", "model_type": "llama"}
    )
    with pytest.warns(UserWarning, match="layer 0 of 'joy' is left out"):
        path = save(vector, tmp_path / "joy.gguf")
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == [
        "direction.1",
        "direction.2",
        "direction.3",
    ]
    for tensor in reader.tensors:  # what llama.cpp asks for: F32, one dimension, one size
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [D]
        assert np.array_equal(tensor.data, vector.at(int(tensor.name[10:])))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    again = load(path)
    assert again == vector.select([1, 2, 3])
    assert dict(again.stream_norms) == {2: 1.5}
    assert again.provenance["model"] == "m"


def test_what_llama_cpp_would_refuse_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="has layer 0 only"):
        save(SteeringVector("a", {0: torch.ones(D)}), tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="has no positions"):
        save(SteeringVector("a", {1: torch.ones(2, D)}), tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="are outputs; leave out layers_are"):
        save(SteeringVector("a", {1: torch.ones(D)}), tmp_path / "a.gguf", layers_are="inputs")
    assert not list(tmp_path.iterdir())


def test_layer_0_of_repeng_is_read_with_a_word(tmp_path):
    with pytest.warns(UserWarning, match="has a direction.0, which llama.cpp refuses"):
        vector = load(written(tmp_path / "v.gguf", directions((0, 1))))
    assert vector.layers == (0, 1)


def test_layers_can_be_said_to_be_inputs(tmp_path):
    given = directions((1, 3))
    vector = load(written(tmp_path / "v.gguf", given), layers_are="inputs")
    assert vector.layers == (0, 2)
    assert np.array_equal(vector.at(2), given[3])
    assert "output of layer l - 1" in vector.provenance["layer_convention"]


def test_directions_of_heads_are_not_taken_for_streams(tmp_path):
    facts = [
        (
            "controlvector.easysteer",
            '{"version": 1, "component": "attention_heads", "metadata": null}',
        )
    ]
    with pytest.raises(ValueError, match="component 'attention_heads', not of hidden states"):
        load(written(tmp_path / "v.gguf", directions((1,)), facts=facts))
    facts = [
        (
            "controlvector.easysteer",
            '{"version": 1, "component": "hidden_states", "metadata": null}',
        )
    ]
    assert load(written(tmp_path / "w.gguf", directions((1,)), facts=facts)).layers == (1,)


# -- files that lie


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def tensor(name="direction.1", shape=(4,), kind=0, offset=0):
    head = (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", one) for one in shape)
    )
    return head + struct.pack("<IQ", kind, offset)


DIRECTION = tensor()


def made(
    tensors=(DIRECTION,), facts=(ARCHITECTURE,), version=3, values=b"\0\0\x80\x3f" * 4, counts=None
):
    count, pairs = counts or (len(tensors), len(facts))
    head = (
        b"GGUF" + struct.pack("<IQQ", version, count, pairs) + b"".join(facts) + b"".join(tensors)
    )
    return head + b"\0" * (-len(head) % 32) + values


def fact(key, kind, raw):
    return text(key) + struct.pack("<I", kind) + raw


NAN = struct.pack("<f", float("nan"))
LIES = {
    "no GGUF file": b"GGML" + made()[4:],
    "GGUF version 1;": made(version=1),
    "GGUF version 50331648": made(version=3 << 24),
    "its count of tensors": made()[:10],
    "1025 tensors; a control vector has at most": made(counts=(1025, 1)),
    "the fact '' twice": made(counts=(1, 2**60)),  # beyond the first, what follows is read as facts
    "cut off, or lies about its sizes: a fact's key": made((), counts=(0, 2**60), values=b"\xff" * 40),
    "the fact 'a' does not fit": made(facts=(ARCHITECTURE, fact("a", 8, struct.pack("<Q", 2**62)))),
    "array": made(facts=(ARCHITECTURE, fact("an array", 9, struct.pack("<IQ", 0, 2**60)))),
    "an array' does not fit": made(facts=(ARCHITECTURE, fact("an array", 9, struct.pack("<IQ", 8, 2**60)))),
    "kind that is not known: 99": made(facts=(ARCHITECTURE, fact("a", 99, b""))),
    "kind that is not known: 9": made(facts=(ARCHITECTURE, fact("a", 9, struct.pack("<IQ", 9, 1) * 9 + b"x" * 99))),
    "'general.architecture' twice": made(facts=(ARCHITECTURE, ARCHITECTURE)),
    "not text in UTF-8": made(facts=(fact("general.architecture", 8, text(b"\xff\xfe")),)),
    "its architecture is 'llama'": made(facts=(fact("general.architecture", 8, text("llama")),)),
    "its architecture is 'None'": made(facts=()),
    "its alignment is 3": made(facts=(ARCHITECTURE, fact("general.alignment", 4, struct.pack("<I", 3)))),
    "its alignment is 0": made(facts=(ARCHITECTURE, fact("general.alignment", 4, struct.pack("<I", 0)))),
    "direction.1 lies outside": made(tensors=(tensor(offset=2**63),)),
    "said to be 5 values": made(tensors=(tensor(shape=(5,)),)),
    "said to be 4611686018427387904 values": made(tensors=(tensor(shape=(2**62,)),)),
    "said to be 0 values": made(tensors=(tensor(shape=(0,)),)),
    "has 2 dimensions; a direction has one": made(tensors=(tensor(shape=(2, 2)),)),
    "GGML's type 2;": made(tensors=(tensor(kind=2),)),
    "has a tensor 'token_embd.weight'": made(tensors=(tensor("token_embd.weight"),)),
    "names layer '01'": made(tensors=(tensor("direction.01"),)),
    "names layer '-1'": made(tensors=(tensor("direction.-1"),)),
    "names layer 4096": made(tensors=(tensor("direction.4096"),)),
    "direction.1 twice": made(tensors=(tensor(), tensor())),
    "has no directions": made(tensors=()),
    "NaN or infinity at layer 1": made(values=NAN * 4),
    "EasySteer's facts is JSON": made(facts=(ARCHITECTURE, fact("controlvector.easysteer", 8, text("{")))),
    "'steerfast' facts has 'name' twice": made(
        facts=(ARCHITECTURE, fact("controlvector.steerfast", 8, text('{"name": "a", "name": "b"}')))
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", LIES)
def test_a_file_that_lies_is_refused(message, tmp_path):
    path = tmp_path / "v.gguf"
    path.write_bytes(LIES[message])
    with pytest.raises(ValueError, match=r"v\.gguf cannot be loaded") as caught:
        load(path)
    assert message in str(caught.value)


def test_the_valid_one_among_them_is_read(tmp_path):
    path = tmp_path / "v.gguf"
    path.write_bytes(made())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path).at(1).tolist() == [1.0] * 4
    for size in range(len(made())):
        path.write_bytes(made()[:size])
        with pytest.raises(ValueError, match="cannot be loaded"):
            load(path)
