"""Pictures are drawn from what is there: the stages from the imports of the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def script(name):
    spec = importlib.util.spec_from_file_location(name, PICTURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_stages_is_that_of_the_imports():
    stages = script("stages")
    assert stages.PICTURE.read_text(encoding="utf-8") == stages.draw(), (
        "run python docs/pictures/stages.py"
    )


def test_a_stage_stands_over_what_it_imports():
    stages = script("stages")
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert stages.ranks(graph) == {"a": 2, "b": 1, "c": 0, "d": 1}
    assert stages.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}


def test_the_whole_text_of_a_stage_is_in_its_box():
    stages = script("stages")
    drawn = stages.draw()
    for name, text in stages.stages().items():
        assert f"{name}/</text>" in drawn
        assert all(word.replace("'", "&#x27;") in drawn for word in text.split()), name
