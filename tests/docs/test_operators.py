"""docs/operators.md is true: its table is that of the code, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from steerfast import Plan, SteeringVector
from steerfast.plans.operators import OPERATORS
from steerfast.table.lowering import lower

PAGE = Path(__file__).parents[2] / "docs/operators.md"


def table():
    rows = ["| operator | adds to h | needs | takes |", "|---|---|---|---|"]
    for name, takes in OPERATORS.items():
        cells = (name, f"`{takes.formula}`", ", ".join(takes.required), ", ".join(takes.optional))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_is_that_of_the_code():
    found = re.search(
        r"<!-- operators -->\n(.*?)\n?<!-- /operators -->", PAGE.read_text(), re.DOTALL
    )
    assert found[1] == table(), f"the page should have:\n{table()}"


def test_the_examples_run(page):
    generator = torch.Generator().manual_seed(0)
    joy, calm = (
        SteeringVector(name, {10: torch.randn(8, generator=generator)}) for name in ("joy", "calm")
    )
    given = page("operators.md", joy=joy, calm=calm)
    plans = {name: value for name, value in given.items() if isinstance(value, Plan)}
    assert set(plans) == {"remove", "fix", "turn", "both", "gated"}
    reads = {
        name: sum(len(s.reads) for s in lower(plan).phases[0].sites.values())
        for name, plan in plans.items()
    }
    assert reads == {"remove": 1, "fix": 1, "turn": 2, "both": 2, "gated": 2}
