"""A folder holds one study: another is refused, whatever differs, and before a model is loaded where that can be told."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from study_runs import TOML, invoke
from tiny_llama import save_tiny_llama
from typer.testing import CliRunner

from steerfast.cli import app
from steerfast.experiments.claim import check_folder, claim_folder
from steerfast.experiments.trials import Trials

BROAD = TOML.replace("coefficients = [0.5, 1, 2, 4]", "coefficients = [0.5]")


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(BROAD)
    for name, letters in (("a.txt", "abcdef"), ("b.txt", "uvwxyz")):
        blocks = [" ".join(letters[i:] + letters[:i]) * 20 for i in range(6)] * 2
        (tmp_path / name).write_text("\n\n".join(f"{n} {text}" for n, text in enumerate(blocks)))
    return path


def arguments(preset, model, **given):
    folder = preset.parent
    options = {
        "preset": preset, "model": model, "text": folder / "a.txt", "code": folder / "b.txt", "tokens": 300,
        "out": folder / "study", **given,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    return ["study", "broad", *words, "--json"]


@pytest.fixture
def done(preset, tiny_folder, monkeypatch):
    """A study of a tiny model that finds anything of anything."""
    from steerfast.experiments import broad

    monkeypatch.setattr(broad, "check_capable", lambda *_: None)
    monkeypatch.setattr(
        broad, "run", lambda laboratory, config, *_: {"kind": "broad", "config": vars(config), "lines": [], "examples": []},
    )  # fmt: skip
    from steerfast.experiments import figures, report

    monkeypatch.setattr(figures, "figures", lambda results: {})
    monkeypatch.setattr(report, "tables", lambda results: [])
    monkeypatch.setattr(report, "write_report", lambda results, path: path)
    invoke(*arguments(preset, tiny_folder))
    return preset.parent / "study"


def refused(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1
    return str(result.exception)


NO_MODEL = "no/such/model"  # is never looked for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 299}, r"config is not .*config.tokens: 300 there, 299 here"),
        ({"text": "b.txt"}, "data is not this one's .*data.text"),
        ({"code": "a.txt"}, "data is not this one's .*data.code"),
    ],
)
def test_another_configuration_or_data_is_refused_before_a_model_is_loaded(
    change, message, done, preset
):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    change = {k: preset.parent / v if isinstance(v, str) else v for k, v in change.items()}
    error = refused(*arguments(preset, NO_MODEL, **change))
    assert "is the folder of another study" in error
    assert re.search(message, error), error
    assert "--out" in error
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}


def test_another_kind_is_refused(done, preset):
    error = refused("study", "sparsity", "--preset=smollm2", f"--out={done}", f"--model={NO_MODEL}")
    assert "kind: 'broad' there, 'sparsity' here" in error


def test_another_model_is_refused_and_the_same_elsewhere_is_not(
    done, preset, tiny_folder, tmp_path
):
    results = (done / "results.json").read_bytes()
    other = save_tiny_llama(tmp_path / "tiny-llama", vocabulary=258, seed=1)
    assert "its model is not this one's" in refused(*arguments(preset, other))
    assert (done / "results.json").read_bytes() == results
    same = shutil.copytree(tiny_folder, tmp_path / "copy" / "tiny-llama")
    shutil.copy(tmp_path / "a.txt", tmp_path / "copied.txt")
    invoke(*arguments(preset, same, text=tmp_path / "copied.txt"))  # paths are no part of a study


def test_results_of_before_there_were_claims_are_kept_too(done, preset, tiny_folder):
    (done / "study.json").unlink()
    invoke(*arguments(preset, tiny_folder))
    (done / "study.json").unlink()
    assert "config.tokens" in refused(*arguments(preset, NO_MODEL, tokens=299))


def test_a_study_that_was_killed_holds_its_folder(done, preset):
    (done / "results.json").unlink()
    assert "config.tokens" in refused(*arguments(preset, NO_MODEL, tokens=299))


def test_a_claim_by_hand(tmp_path):
    mine = {"kind": "broad", "config": {"layers": ((0,), (1, 2))}, "model": "a"}
    check_folder(tmp_path / "absent", mine)
    Trials(tmp_path)  # tune leaves trials, which no study minds
    claim_folder(tmp_path, mine)
    claim_folder(tmp_path, mine)
    check_folder(tmp_path, {"kind": "broad"})
    assert json.loads((tmp_path / "study.json").read_text())["config"] == {"layers": [[0], [1, 2]]}
    with pytest.raises(ValueError, match="model: 'a' there, 'b' here"):
        claim_folder(tmp_path, {**mine, "model": "b"})
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(ValueError, match="is an object"):
        check_folder(tmp_path, mine)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("broad", "--text", "absent.txt"), "no corpus at absent.txt"),
        (("behaviours", "--data", "absent"), "no myopic.json"),
        (("behaviours", "--text", "absent.txt"), "no corpus at absent.txt"),
        (("sparsity", "--text", "absent.txt"), "no corpus at absent.txt"),
        (("broad", "--tokens", "0"), "tokens is 0, but goes from 1"),
    ],
)
def test_data_is_looked_at_before_a_model_is_loaded(words, message, tmp_path):
    error = refused("study", *words, f"--model={NO_MODEL}", f"--out={tmp_path / 'out'}")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_layer_beyond_the_model_is_told_before_anything_is_measured(preset, tiny_folder):
    preset.write_text(BROAD.replace("control_layer = 2", "control_layer = 4"))
    error = refused(*arguments(preset, tiny_folder))
    assert "names layer 4, but tiny-llama has layers 0..3" in error
    assert not list((preset.parent / "study").glob("vectors/*"))
