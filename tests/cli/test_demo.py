"""``steerfast demo`` on a tiny model: what it writes, shows and says to try next."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from steerfast import contrast, load_vector
from steerfast.cli import app
from steerfast.cli.demo import next_commands
from steerfast.experiments.demo import BEGINNINGS
from steerfast.experiments.dose import COEFFICIENTS

runner = CliRunner()


def demo(*arguments):
    result = runner.invoke(
        app, ["demo", "--quick", "--dtype", "float32", *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result


def test_one_direction_and_what_to_try_next(tiny_folder, tmp_path, monkeypatch):
    """The short form; then its three commands, as printed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "tiny")
    result = demo("--model", "tiny", "--json")
    [line] = result.stdout.splitlines()
    facts = json.loads(line)
    assert set(facts) == {"model", "layer", "generations", "dose_response", "paths"}
    assert set(facts["dose_response"]) == {"sentiment"}
    assert len(facts["dose_response"]["sentiment"]) == 5
    assert [row["prompt"] for row in facts["generations"]] == [
        p for p in BEGINNINGS for _ in range(3)
    ]
    assert set(facts["paths"]) == {"sentiment", "plot"}
    assert "<svg" in (tmp_path / facts["paths"]["plot"]).read_text()
    shown = result.stderr
    parts = ["1. A direction.", "2. Steering.", *BEGINNINGS, "3. Dose and response.", "--full"]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    commands = next_commands(
        facts["paths"]["sentiment"], facts["layer"], "tiny", False, prompt=BEGINNINGS[0]
    )
    for command in commands:
        assert command in shown
        more = ["--quick"] if " demo " in command else ["--tokens", "4"]
        done = runner.invoke(app, [*shlex.split(command)[1:], *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output


def test_full_takes_every_direction_and_the_time_of_a_step(tiny_folder, tmp_path):
    out = tmp_path / "out"
    facts = json.loads(
        demo("--full", "--model", str(tiny_folder), "--out", str(out), "--json").stdout
    )
    assert set(facts) == {
        "model", "layer", "generations", "dose_response", "ms_per_token", "steps", "paths"
    }  # fmt: skip
    assert list(facts["dose_response"]) == list(contrast.shipped())
    for points in facts["dose_response"].values():
        assert [point[0] for point in points] == list(COEFFICIENTS)
        assert all(len(point) == 3 for point in points)
    assert set(facts["ms_per_token"]) == {"stock", "patched", "steered"}
    assert all(value > 0 for value in facts["ms_per_token"].values())
    assert set(facts["paths"]) == {*contrast.shipped(), "plot"}
    for name in contrast.shipped():
        assert load_vector(facts["paths"][name]).name == name


def test_text_is_shown_before_anything_is_measured(tiny_folder, tmp_path, monkeypatch):
    """An error in the measurement comes after the texts."""
    from steerfast.experiments.demo import Demo

    def broken(self, stage):
        raise ValueError("not measured")

    monkeypatch.setattr(Demo, "measure", broken)
    result = runner.invoke(
        app, ["demo", "--quick", "-m", str(tiny_folder), "--out", str(tmp_path / "out")]
    )
    assert str(result.exception) == "not measured"
    assert all(prompt in result.stdout for prompt in BEGINNINGS)


def test_an_unknown_direction_is_named(tiny_folder):
    with pytest.raises(ValueError, match="no shipped direction 'up'; known: certainty"):
        demo("--direction", "up", "--model", str(tiny_folder))
