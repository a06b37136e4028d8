"""README is true: its Python runs, its paths and commands exist. (Its tables: test_report.py.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steerfast.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.model
def test_the_python_of_the_use_section_runs(capsys, smollm2):
    code = "".join([code for language, code in BLOCKS if language == "python"][:2])
    given = {}
    exec(compile(code, "README.md", "exec"), given)
    said = capsys.readouterr().out
    texts = [answer.text for answer in given["answers"]]
    assert len(set(texts)) == 3
    assert all(texts)
    assert "2 of 3 rows steered" in said
    assert len({line for line in said.splitlines() if line.startswith("My day was")}) == 3


def test_the_hook_that_it_equals_is_that_hook(tiny):
    """The last Python block, against a patched model."""
    from steerfast import SteeringVector, attach, steer

    code = [code for language, code in BLOCKS if language == "python"][-1]
    model = tiny.model
    vector, ids = torch.ones(64), torch.arange(5)[None]
    with torch.no_grad():
        plain = model(ids).logits
        exec(code, {"layer": model.model.layers[1], "coefficient": 2.0, "vector": vector})
        hooked = model(ids).logits
        model.model.layers[1]._forward_hooks.clear()
        with attach(model) as handle, handle.use(steer(SteeringVector("v", {1: vector}), 2.0)):
            got = model(ids).logits
    assert not torch.equal(plain, hooked)
    torch.testing.assert_close(got, hooked, rtol=1e-5, atol=1e-5)


def test_named_paths_and_commands_exist():
    table = re.search(r"## Map\n\n(.*?)\n\n", README, flags=re.DOTALL)
    folder = Path()
    for name in re.findall(r"`([\w/.]+\.(?:py|md)|[\w/]+/)`", table[1]):
        given = Path(name)
        folder = given.parent if len(given.parts) > 1 else folder
        found = [given, folder / given, Path("steerfast") / given]
        assert any((ROOT / path).exists() for path in found), name
    listed = CliRunner().invoke(app, ["--help"]).output
    for command in re.findall(r"\.venv/bin/steerfast (\w+)", README):
        assert command in listed
    for target in re.findall(r"`?make (\w+)", README):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
