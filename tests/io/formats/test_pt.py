"""``.pt`` files of CAA, the paper, hotwire, the assistant axis and persona vectors; what needs code, or lies."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from plain_steering import logits_with, steered_logits
from tiny_llama import tiny_llama

from steerfast import Plan, SteeringVector, load, save, steer

ROWS = torch.arange(20.0).reshape(5, 4) + 1


def stored(path, content):
    torch.save(content, path)
    return path


def test_the_papers_vectors(paper_data):
    norms = {"agreeableness": 1.6350, "anti_immigration": 1.7031, "myopic": 2.1762, "sycophancy": 0.3343,
             "wealth_seeking": 2.4084}  # fmt: skip
    for name, norm in norms.items():
        vector = load(
            paper_data / "vectors" / f"{name}_activations.pt", name=name, layers_are="outputs"
        )
        assert (vector.name, vector.layers, vector.hidden_size) == (name, tuple(range(32)), 4096)
        assert float(vector.at(10).norm()) == pytest.approx(norm, abs=1e-3)


def test_rows_by_layer_are_outputs(tmp_path):
    path = stored(tmp_path / "myopic_activations.pt", ROWS)
    with pytest.warns(UserWarning, match="row l is the output of layer l"):
        vector = load(path)
    assert (vector.name, vector.layers) == ("myopic_activations", (0, 1, 2, 3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axis = load(stored(tmp_path / "assistant_axis.pt", ROWS.bfloat16()))
    assert axis.at(4).tolist() == ROWS[4].tolist()


def test_persona_vectors_are_hidden_states(tmp_path):
    """Row i is hidden_states[i], so row 0 is the embeddings; their steerer takes layer_idx = i - 1."""
    model = tiny_llama(hidden=16, layers=4)
    rows = torch.randn(5, 16)
    path = stored(tmp_path / "evil_response_avg_diff.pt", rows)
    with pytest.warns(UserWarning, match="direction 0 of .* belongs to the embeddings"):
        vector = load(path)
    assert vector.layers == (0, 1, 2, 3)
    wanted = logits_with(model, {2: 1.5 * rows[3]})
    torch.testing.assert_close(steered_logits(model, steer(vector, 1.5, layers=2)), wanted)
    torch.testing.assert_close(logits_with(model, inputs={3: 1.5 * rows[3]}), wanted)


def test_caa_has_a_file_a_layer(tmp_path):
    path = stored(tmp_path / "vec_layer_13_Llama-2-7b-chat-hf.pt", ROWS[0].half())
    assert load(path).layers == (13,)
    assert load(path, layer=2).layers == (2,)
    with pytest.raises(ValueError, match="of which layer; give layer="):
        load(stored(tmp_path / "mine.pt", ROWS[0]))


def test_dicts_and_lists(tmp_path):
    keyed = stored(tmp_path / "a.pt", {3: ROWS[0], 7: ROWS[1]})
    assert load(keyed, layers_are="outputs").layers == (3, 7)
    # hotwire takes the first tensor of a dict
    assert load(stored(tmp_path / "b.pt", {"vector": ROWS}), layers_are="outputs").layers == (
        0,
        1,
        2,
        3,
        4,
    )
    several = stored(tmp_path / "c.pt", {"mean": ROWS, "pca": ROWS * 2})
    assert load(f"{several}#pca", layers_are="outputs").at(0).tolist() == (ROWS[0] * 2).tolist()
    assert load(stored(tmp_path / "d.pt", list(ROWS)), layers_are="outputs").layers == (
        0,
        1,
        2,
        3,
        4,
    )
    assert load(
        stored(tmp_path / "e.pt", OrderedDict({"layers.1": ROWS[0]})), layers_are="outputs"
    ).layers == (1,)
    parameter = stored(tmp_path / "f.pt", torch.nn.Parameter(ROWS))
    assert load(parameter, layers_are="outputs").at(1).tolist() == ROWS[1].tolist()


def test_round_trip(tmp_path):
    vector = SteeringVector("joy", dict(enumerate(torch.randn(4, 8))))
    again = load(save(vector, tmp_path / "joy.pt"), layers_are="outputs")
    assert again == vector
    as_tensor = torch.load(tmp_path / "joy.pt", weights_only=True)
    assert torch.equal(
        as_tensor, torch.stack([vector.at(layer) for layer in range(4)])
    )  # as hotwire indexes it
    persona = load(
        save(vector, tmp_path / "joy_response_avg_diff.pt", layers_are="inputs"), name="joy"
    )
    assert persona == vector
    few = vector.select([1, 3])
    assert load(save(few, tmp_path / "joy.pt"), layers_are="outputs") == few
    normed = SteeringVector("joy", {0: torch.ones(4)}, {0: 1.0})
    with pytest.warns(UserWarning, match="no place for the stream norms"):
        save(normed, tmp_path / "n.pt")


# -- the assistant axis' capping


def capping(tmp_path):
    """As upstream lays it out: vectors with their layers, experiments with interventions."""
    vectors = {f"layer_{at}/contrast": {"vector": torch.randn(16), "layer": at} for at in (1, 2)}
    interventions = [{"vector": name, "cap": -0.25 * at} for at, name in enumerate(vectors, 1)]
    content = {
        "vectors": vectors,
        "experiments": [{"id": "layers_1:3-p0.25", "interventions": interventions}],
    }
    return content, stored(tmp_path / "capping_config.pt", content)


def test_a_capping_experiment_is_a_plan(tmp_path):
    content, path = capping(tmp_path)
    plan = load(f"{path}#layers_1:3-p0.25")
    assert isinstance(plan, Plan)
    model = tiny_llama(hidden=16, layers=4)
    caps = {}
    for one in content["experiments"][0]["interventions"]:
        entry = content["vectors"][one["vector"]]
        caps[entry["layer"]] = (entry["vector"] / entry["vector"].norm(), one["cap"])
    hooks = []
    for layer, (unit, cap) in caps.items():

        def bound(module, args, out, unit=unit, cap=cap):
            return out - ((out @ unit) - cap).clamp(min=0)[..., None] * unit

        hooks.append(model.model.layers[layer].register_forward_hook(bound))
    wanted = logits_with(model)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(steered_logits(model, plan), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - logits_with(model)).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"one of: layers_1:3-p0\.25"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cap": float("nan")}, "is nan; it is a finite number"),
        ({"vector": "absent"}, "names vector 'absent', which the file does not have"),
        ({"cap": "1"}, "it is a finite number"),
    ],
)
def test_a_capping_that_is_broken(change, message, tmp_path):
    content, _ = capping(tmp_path)
    content["experiments"][0]["interventions"][0].update(change)
    with pytest.raises(ValueError, match=message):
        load(f"{stored(tmp_path / 'c.pt', content)}#layers_1:3-p0.25")


# -- what is refused


class Runs:
    def __reduce__(self):
        return (print, ("run!",))


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    torch.save({"a": Runs()}, tmp_path / "v.pt")
    with pytest.raises(
        ValueError, match=r"needs \w*builtin\w*\.print, and reading that may run code"
    ):
        load(tmp_path / "v.pt")
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        load(tmp_path / "w.pt")
    torch.save(np.ones((2, 3)), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="an array of numpy"):
        load(tmp_path / "x.pt")
    assert capsys.readouterr().out == ""


def test_what_needs_gigabytes_is_refused(tmp_path):
    huge = torch.zeros(1).expand(2**40)
    with pytest.raises(ValueError, match=r"claims the shape .* more than is stored"):
        load(stored(tmp_path / "v.pt", huge), layer=1)
    ask = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    path = rewritten(stored(tmp_path / "w.pt", ROWS), lambda data: ask)
    with pytest.raises(ValueError, match=r"needs __builtin__\.bytearray"):
        load(path)


def test_sizes_that_lie_are_refused(tmp_path):
    path = rewritten(
        stored(tmp_path / "v.pt", ROWS), lambda data: data.replace(b"K\x14tq", b"K\x28tq")
    )
    with pytest.raises(ValueError, match=r"lies about its sizes|does not match expected size"):
        load(path)
    path = rewritten(
        stored(tmp_path / "w.pt", ROWS),
        lambda data: data.replace(b"K\x05K\x04\x86", b"K\x05K\x40\x86"),
    )
    with pytest.raises(ValueError, match=r"torch cannot read it|more than is stored"):
        load(path)
    path = rewritten(stored(tmp_path / "x.pt", ROWS), lambda data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.ones(2, 3, dtype=torch.long), "is torch.int64; a direction holds real numbers"),
        (torch.ones(2, 3, dtype=torch.complex64), "needs torch.ComplexFloatStorage"),
        (torch.ones(2, 3).to_sparse(), "needs torch._utils._rebuild_sparse_tensor"),
        (torch.ones(2, 3, 4), "directions by layer are"),
        (torch.ones(0, 3), "directions by layer are"),
        ({"a": 1, "b": 2}, "it names layer 'a'"),
        ({5000: torch.ones(3)}, "names layer 5000"),
        ({1: [1.0]}, "layer 1 is list"),
        ({1: torch.ones(3), 2: torch.ones(4)}, "mixes hidden sizes"),
        ("text", "it holds str"),
        ({}, "no directions by layer"),
    ],
)  # fmt: skip
def test_what_is_no_vector_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=r"v\.pt cannot be loaded") as caught:
        load(stored(tmp_path / "v.pt", content), layers_are="outputs")
    assert message in str(caught.value)
