"""docs/examples: short enough to read, they run, and what they print says that steering happened. (Those with vLLM: tests/vllm.)"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


@pytest.fixture
def printed(your_llama, tmp_path, monkeypatch, capsys):
    """run(name): what a script prints about a tiny model."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        monkeypatch.setattr(sys, "argv", [name, str(your_llama)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def texts(said):
    """{what: text} of the lines `what: 'text'`."""
    return {
        what.strip(): eval(text)
        for what, text, _ in re.findall(r"""^(.+?): ((['"]).*\3)$""", said, re.M)
    }


def test_they_are_short():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 6
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 40, script.name


def test_own_contrast_data(printed, tmp_path):
    said = printed("own_contrast_data.py")
    found = texts(said)
    assert list(found) == ["-0.2", "+0.0", "+0.2"]
    assert len(set(found.values())) == 3
    assert "2 of 3 rows steered" in said
    assert said.count("resid_post[4]") == 2
    assert (tmp_path / "rain.safetensors").is_file()


def test_several_behaviours(printed):
    said = printed("several_behaviours.py")
    found = texts(said)
    assert list(found) == ["unsteered", "joyful", "formal", "combined", "simultaneous"]
    assert len(set(found.values())) == 5
    assert "4 of 5 rows steered" in said
    assert said.count("resid_post[6]") == 1  # simultaneous: the second at a layer of its own


def test_remove_a_direction(printed):
    said = printed("remove_a_direction.py")
    assert re.findall(r"(\d+) rows steered", said) == ["0", "11"]  # <s> and ten letters
    before, after = (float(each) for each in re.findall(r"any layer: ([\d.]+)", said))
    assert before > 0.1
    assert after < 1e-4
    first, second = re.findall(r"^  ('.*')$", said, re.M)
    assert first != second


def test_a_plan_a_row(printed):
    said = printed("a_plan_a_row.py")
    found = texts(said)
    assert len(found) == 6
    assert "rows steered" in said
    assert len({found[what] for what in ("unsteered", "happy", "gloomy")}) == 3
    assert found["fading"] != found["happy, the answer only"]
