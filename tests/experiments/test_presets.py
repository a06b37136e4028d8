"""Configurations of studies: those that are shipped, and what is wrong in others."""

from __future__ import annotations

import pytest
import torch
from study_runs import TOML
from typer.testing import CliRunner

from steerfast.cli import app
from steerfast.experiments import config
from steerfast.experiments.measure import check_capable, model_digest


@pytest.mark.parametrize("name", config.presets())
def test_presets_load(name):
    found = config.load_preset(name)
    assert found.name == name
    assert list(found.broad.coefficients) == sorted(found.broad.coefficients)
    if found.behaviours is not None:
        assert set(found.behaviours.simultaneous) == set(found.behaviours.behaviours)


def test_presets_with_questions_are_of_models_that_answer_them():
    """Gemma's is the base model, which goes on with a text."""
    chatting = [name for name in config.presets() if config.load_preset(name).behaviours]
    assert chatting == ["llama-2-7b-chat", "smollm2"]


def test_the_papers_preset_is_the_papers():
    found = config.load_preset("llama-2-7b-chat").behaviours
    assert found.chosen["myopic"]["10"] == (-1, 10)
    assert "collapse" in found.flagged["myopic@10"]
    assert (found.train, found.validation, found.test, found.scale) == (500, 200, 0, "raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train = 6", "trian = 6"), "unknown trian"),
        (("train = 6", ""), "lacks train"),
        (("layers = [0, 2]", "layers = 2"), r"layers in \[behaviours\] of bad.toml is 2"),
        (('model = "tiny"', "model = "), "is not TOML"),
        (('dtype = "float32"', 'dtype = "float32"\nspeed = 3'), "bad.toml has unknown speed"),
    ],
)
def test_bad_configurations_are_explained(tmp_path, change, message):
    path = tmp_path / "bad.toml"
    path.write_text(TOML.replace(*change))
    with pytest.raises(ValueError, match=message):
        config.load_preset(path)


def test_unknown_presets_and_studies(tmp_path):
    with pytest.raises(ValueError, match=r"no preset 'llama'; give a \.toml file, or one of"):
        config.load_preset("llama")
    path = tmp_path / "half.toml"
    path.write_text('model = "x"\ndtype = "float32"\n')
    result = CliRunner().invoke(app, ["study", "broad", "--preset", str(path)])
    assert "configures no study of broad" in str(result.exception)
    result = CliRunner().invoke(app, ["study", "report", str(tmp_path)])
    assert "no results.json" in str(result.exception)


def test_a_models_digest_sees_weights_and_settings(tiny):
    first = model_digest(tiny.model)
    assert model_digest(tiny.model) == first
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    second = model_digest(tiny.model)
    tiny.model.config.rms_norm_eps = 0.5
    assert len({first, second, model_digest(tiny.model)}) == 3


def test_a_model_that_predicts_nothing_cannot_lose_anything():
    with pytest.raises(ValueError, match="predicts none of the 7 tokens of 'code'"):
        check_capable({"top1": 0.0, "tokens": 7}, "code")


BEHAVIOURS = """
[behaviours]
behaviours = ["myopic"]
train = 6
validation = 5
layers = [0, 2]
coefficients = [0.5, 1]
individual_layers = [1]
global_coefficients = [-1.0, 1.0, 1.0]
pair_coefficient = 0.5
simultaneous = { myopic = 1 }
"""
BROAD = """
[broad]
samples = 4
sample_tokens = 40
tokens = 150
context = 64
layers = [[0], [1, 2]]
coefficients = [0.5]
control_layer = 2
"""
SPARSITY = """
[sparsity]
directions = ["sentiment"]
layer = 1
coefficients = [1, -0.5]
shares = [0.5]
tax_tokens = 10
"""
HEAD = 'model = "m"\ndtype = "float32"\n'
HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("table", "one", "other", "message"),
    [
        (BEHAVIOURS, "train = 6", "train = 0", "train is 0, but goes from 1 to 1_000_000"),
        (BEHAVIOURS, "train = 6", f"train = {HUGE}", "train is 9.22337e.18, but goes"),
        (BEHAVIOURS, "validation = 5", "validation = -5", "validation is -5"),
        (BEHAVIOURS, "layers = [0, 2]", "layers = [0, -2]", "layers is -2, but goes from 0 to 9_999"),
        (BEHAVIOURS, "layers = [0, 2]", "layers = []", "layers is empty"),
        (BEHAVIOURS, "coefficients = [0.5, 1]", "coefficients = [0.5, 1e300]", r"coefficients is 1e\+300"),
        (BEHAVIOURS, "coefficients = [0.5, 1]", "coefficients = [0, 1]", "coefficients is 0"),
        (BEHAVIOURS, "[-1.0, 1.0, 1.0]", "[-1.0, 1.0, 0.0]", "step is positive"),
        (BEHAVIOURS, "[-1.0, 1.0, 1.0]", "[-1.0, 1.0, 1e-9]", "at most 10_000 points"),
        (BEHAVIOURS, "[-1.0, 1.0, 1.0]", "[1.0, -1.0, 0.5]", "first comes before last"),
        (BEHAVIOURS, "{ myopic = 1 }", "{ myopic = 100000 }", "simultaneous is 100000"),
        (BEHAVIOURS, "{ myopic = 1 }", "{ kind = 1 }", "for each of the behaviours"),
        (BEHAVIOURS, '["myopic"]', '["../myopic"]', "no name of a file"),
        (BEHAVIOURS, '["myopic"]', '["myopic", "myopic"]', "has 'myopic' twice"),
        (BEHAVIOURS, '["myopic"]', "[]", "behaviours is empty"),
        (BEHAVIOURS, "train = 6", "train = 6\nseed = -1", "seed is -1"),
        (BEHAVIOURS, "train = 6", "train = 6\ntax_tokens = -1", "tax_tokens is -1, but goes from 0"),
        (BEHAVIOURS, "train = 6", "train = 6\nchosen = { myopic = { x = [-1, 1] } }", "layers are written"),
        (BEHAVIOURS, "train = 6", "train = 6\nchosen = { kind = { 1 = [-1, 1] } }", "of the behaviours"),
        (BROAD, "tokens = 150", "tokens = 0", "tokens is 0"),
        (BROAD, "context = 64", "context = 1", "context is 1, but goes from 2"),
        (BROAD, "[[0], [1, 2]]", "[[0], []]", "layers has an empty set"),
        (BROAD, "[[0], [1, 2]]", "[[0], [1, 123456]]", "layers is 123456"),
        (BROAD, "control_layer = 2", "control_layer = 2\nstop = 1.5", "stop is 1.5, but goes from 0 to 1"),
        (SPARSITY, "shares = [0.5]", "shares = [50]", "shares is 50, but goes from 0 to 1"),
        (SPARSITY, "[1, -0.5]", "[0, 0]", "coefficients are all 0"),
        (SPARSITY, "layer = 1", f"layer = {HUGE}", "layer is"),
        ("", "float32\"", "float32\"\nname = \"../x\"", "name has '../x', which is no name"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_with_the_range(table, one, other, message, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(HEAD + table)
    config.load_preset(path)
    assert one in HEAD + table
    path.write_text((HEAD + table).replace(one, other, 1))
    with pytest.raises(ValueError, match=message) as caught:
        config.load_preset(path)
    assert "t.toml" in str(caught.value)
