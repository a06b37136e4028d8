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
    assert found.behaviours is not None
    assert set(found.behaviours.simultaneous) == set(found.behaviours.behaviours)
    assert list(found.broad.coefficients) == sorted(found.broad.coefficients)


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
