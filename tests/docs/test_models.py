"""docs/models.md is true: what it says is refused is, its hook is the plan, its backends are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from steerfast.ops.backends import NAMES

PAGE = Path(__file__).parents[2] / "docs/models.md"


def test_the_examples_run(page):
    given = page("models.md")
    said = given.said.splitlines()
    shown = re.search(r"```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert said == [*shown.splitlines(), "reference"]
    assert (given["steered"] - given["plain"]).abs().max() > 0.01
    torch.testing.assert_close(given["steered"], given["hooked"], rtol=1e-5, atol=1e-5)
    assert given["name"] == "your-llama"
    assert "forward" not in vars(given["model"].model.layers[0])


def test_the_table_has_every_backend_in_the_order_of_auto():
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", text, re.MULTILINE)
    assert tuple(found) == NAMES
