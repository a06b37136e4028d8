"""Reading ``results/*.jsonl``: what was measured last, and how figures are written in tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Line = dict[str, Any]


def every(name: str) -> list[Line]:
    """All lines of ``results/<name>.jsonl``, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def newest(name: str, *keys: str) -> list[Line]:
    """The lines of the newest commit in a file, of each device; of lines with equal ``keys`` the last.

    A table thus holds what one version of the code gave, and nothing that has not been measured since.
    """
    lines = every(name)
    commits = {line["device"]: line["commit"] for line in lines}
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        if line["commit"] == commits[line["device"]]:
            found[(line["device"], *(line.get(key) for key in keys))] = line
    return list(found.values())


def caption(lines: Iterable[Line]) -> str:
    """Device, versions, commit and date of a table's lines, one clause for each that differs."""
    said: dict[str, None] = {}
    for line in lines:
        versions = line["versions"]
        more = f", vLLM {versions['vllm']}" if "vllm" in versions else ""
        said[
            f"{line['device']}; torch {versions['torch']}, transformers {versions['transformers']}{more}; "
            f"commit {line['commit']}, {line['date'][:10]}"
        ] = None
    return " · ".join(said)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], note: str) -> str:
    """A table of Markdown and a note below."""
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
    return f"{text}\n\n{note}"


def spread(figure: Line, digits: int = 1, unit: str = "", scale: float = 1.0) -> str:
    """``median [p20, p80]``; of ratios, ``ratio [p20, p80]`` or the 95% interval that they carry."""
    middle = figure["median"] if "median" in figure else figure["ratio"]
    low, high = ends(figure)
    shown = [f"{scale * value:.{digits}f}" for value in (middle, low, high)]
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]"


def ends(figure: Line) -> tuple[float, float]:
    """The ends of a figure's spread."""
    if "p20" in figure:
        return figure["p20"], figure["p80"]
    return figure["low"], figure["high"]
