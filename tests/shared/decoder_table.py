"""Which decoders of transformers can be steered, and how: the table of ``docs/models.md``, written by ``make models-table``.

Each tick is a check of ``decoder_checks``, which ``tests/models/test_every_decoder.py`` makes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoder_checks as checks
import transformers
from decoder_checks import Case, NotOffered, case_of
from tiny_decoders import decoder_names, tiny_decoder

from steerfast import SteerfastError, attach
from steerfast.decoders import find_decoder

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- decoders -->", "<!-- end of decoders -->"
# What each is tried with; the last column says all, or which not.
COLUMNS: dict[str, Callable[[Case], None]] = {
    "idle": checks.idle_bitwise,
    "plans a row": checks.steered,
    "generate": checks.greedy,
    "chunked": checks.chunked,
    "sweep": checks.sweep,
    "extraction": checks.extraction,
}
HEAD = ["model type", "decoder", "fused", "layer", "norm", "sites", *COLUMNS]  # of a row
SHOWN = ["model type", "fused", "layer", "norm", "sites", "right in"]  # of the page
TICK, NOT = "✓", "–"


def every_decoder() -> dict[str, tuple[str, dict[str, Any]]]:
    """{title: (model type, overrides of its config)}."""
    return {name: (name, {}) for name in decoder_names()}


def row_of(title: str) -> list[str]:
    """The cells of a decoder's line."""
    name, overrides = every_decoder()[title]
    model = tiny_decoder(name, **overrides)
    try:
        case = case_of(model)
    except SteerfastError as error:
        return [title, f"refused: {_short(str(error))}"]
    cells = [title, type(find_decoder(model).module).__name__, *described(model)]
    for check in COLUMNS.values():
        try:
            check(case)
            cells.append(TICK)
        except NotOffered:
            cells.append(NOT)
    return cells


def described(model: Any) -> list[str]:
    """fused, layer, norm, sites."""
    with attach(model) as handle:
        survey = handle.survey
    wirings = [found.wiring for found in survey.layers]
    forms = sorted({one.form for one in wirings if one is not None})
    norms = sorted({str(form) for form in survey.forms.values()}) if survey.fused else []
    count = len(wirings)
    fused = {count: "all", 0: "none"}.get(survey.fused, f"{survey.fused} of {count}")
    mid = any(one is not None and one.has_mid for one in wirings)
    return [
        fused,
        ", ".join(forms) or NOT,
        ", ".join(f"`{norm}`" for norm in norms) or NOT,
        "pre, mid, post" if mid else "pre, post",
    ]


def _short(reason: str) -> str:
    text = re.sub(r"^cannot (steer|look at how) .*?(: | works: )", "", reason.split("\n")[0])
    return text.replace("|", "/").replace("; see docs/models.md", "")


def committed() -> dict[str, list[str]]:
    """{title: cells} of the page."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [_unfolded([cell for cell in row if cell]) for row in rows]
    return {row[0]: row for row in found}


def _folded(row: list[str]) -> list[str]:
    """As the page shows it: model type and decoder in one, and what is not right in the last."""
    if len(row) <= 2:
        return row
    ticks = dict(zip(COLUMNS, row[-len(COLUMNS) :], strict=True))
    missing = [name for name, tick in ticks.items() if tick != TICK]
    right = f"all but {', '.join(missing)}" if missing else "all"
    return [f"{row[0]} ({row[1]})", *row[2 : -len(COLUMNS)], right]


def _unfolded(row: list[str]) -> list[str]:
    if len(row) <= 2:
        return row
    title, kind = row[0].rstrip(")").split(" (")
    missing = row[-1].removeprefix("all").removeprefix(" but ").split(", ")
    return [title, kind, *row[1:-1], *(NOT if name in missing else TICK for name in COLUMNS)]


def rendered(rows: list[list[str]]) -> str:
    lines = [SHOWN, ["---"] * len(SHOWN), *map(_folded, rows)]
    text = "\n".join(
        "| " + " | ".join(row + [""] * (len(SHOWN) - len(row))) + " |" for row in lines
    )
    fused = sum(row[2] == "all" for row in rows if len(row) > 2)
    steered = sum(len(row) > 2 for row in rows)
    head = (
        f"Of the {len(rows)} decoders that transformers {transformers.__version__} knows, "
        f"{steered} can be steered, {fused} of them fused in all layers."
    )
    return f"{head}\n\n{text}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for title in sys.argv[1:]:
            print(" | ".join(row_of(title)))
    else:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        page = f"{before}{BEGIN}\n{rendered([row_of(title) for title in every_decoder()])}\n{END}{rest.split(END)[1]}"
        PAGE.write_text(page, encoding="utf-8")
