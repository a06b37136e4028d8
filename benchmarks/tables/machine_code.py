"""What the machine code says of a row, from results/sass.md as ``sass.py`` wrote it: a prediction."""

from __future__ import annotations

from pathlib import Path

REPORT = Path(__file__).parents[1] / "results/sass.md"


def sass() -> str:
    """The table of the report."""
    lines = REPORT.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))
