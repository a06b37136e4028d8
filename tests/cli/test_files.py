"""``steerfast convert`` and ``inspect``, and a vector of another library on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steerfast import SteeringVector, load, load_plan, save
from steerfast.cli import app

gguf = pytest.importorskip("gguf")

FILES = Path(__file__).parents[1] / "io" / "files"


def run(*arguments):
    """The JSON object on the last line of stdout."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_convert_between_libraries(tmp_path):
    facts = run("convert", FILES / "repeng.gguf", tmp_path / "v.safetensors", "--name", "joy")
    assert (facts["name"], facts["layers"], facts["written"]) == (
        "joy",
        [1, 2, 3],
        str(tmp_path / "v.safetensors"),
    )
    ours = load(tmp_path / "v.safetensors")
    assert ours.provenance["format"] == "GGUF control vector"
    run("convert", tmp_path / "v.safetensors", tmp_path / "v.gguf")
    tensors = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    assert {name: one.tolist() for name, one in tensors.items()} == {
        f"direction.{layer}": ours.at(layer).tolist() for layer in (1, 2, 3)
    }
    run("convert", tmp_path / "v.gguf", tmp_path / "v.svec", "--write-layers-are", "inputs")
    assert set(json.loads((tmp_path / "v.svec").read_text())["directions"]) == {"2", "3", "4"}
    assert load(tmp_path / "v.svec") == ours


def test_convert_a_feature_to_a_plan(tmp_path):
    source = f"{FILES}/saelens-jumprelu/sae_weights.safetensors#3"
    facts = run("convert", source, tmp_path / "plan.json", "--target", 2)
    plan = load_plan(tmp_path / "plan.json")
    assert (facts["plan"], facts["layers"]) == (plan.digest, [2])
    assert plan.terms[0].operator == "feature_clamp"


def test_layers_are_said(tmp_path):
    torch.save(torch.ones(3, 4), tmp_path / "v.pt")
    assert run("inspect", tmp_path / "v.pt", "--layers-are", "outputs")["vectors"][0]["layers"] == [
        0,
        1,
        2,
    ]
    with pytest.warns(UserWarning, match="embeddings"):
        facts = run("convert", tmp_path / "v.pt", tmp_path / "v.npz", "--layers-are", "inputs")
    assert facts["layers"] == [0, 1]
    assert "output of layer l - 1" in facts["provenance"]["layer_convention"]


def test_inspect_shows_norms_outliers_and_cosines(tmp_path):
    plain = torch.ones(100)
    spiked = torch.ones(100)
    spiked[7] = -50.0
    one = save(
        SteeringVector("one", {1: plain, 2: spiked}, {1: 20.0}, {"model": "m"}),
        tmp_path / "one.npz",
    )
    other = save(SteeringVector("two", {2: -spiked, 3: plain}), tmp_path / "two.svec")
    facts = run("inspect", one, other)
    first, second = facts["vectors"]
    assert [row["layer"] for row in first["by_layer"]] == [1, 2]
    assert first["by_layer"][0] == {"layer": 1, "norm": 10.0, "share": 0.5, "outliers": []}
    assert first["by_layer"][1]["outliers"] == [[7, -50.0]]
    assert first["provenance"]["model"] == "m"
    assert "the output of layer l" in second["provenance"]["layer_convention"]
    (pair,) = facts["pairs"]
    assert pair["files"] == [str(one), str(other)]
    assert pair["cosines"] == {"2": pytest.approx(-1.0)}
    shown = CliRunner().invoke(app, ["inspect", str(one), str(other)]).output
    for part in ("50%", "7 (-50)", "layer_convention", "cosines of"):
        assert part in shown.replace("50.0%", "50%")


def test_a_vector_of_another_library_steers(tiny_folder, tmp_path):
    vector = SteeringVector("joy", {1: torch.randn(64), 2: torch.randn(64)})
    common = ("generate", "hello", "-m", tiny_folder, "--dtype", "float32", "--tokens", 6)
    ours = run(*common, "-v", f"{save(vector, tmp_path / 'v.safetensors')}:9:1")
    theirs = run(*common, "-v", f"{save(vector, tmp_path / 'v.gguf')}:9:1")
    assert theirs["plan"] == ours["plan"]
    assert theirs["steered"] == ours["steered"]
