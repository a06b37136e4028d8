"""Two commits side by side: every figure that both have measured on one device, and whether it moved.

Times of different runs differ by what the machine did meanwhile; so ratios, whose two sides were measured in one run,
are compared first, and a figure has moved only where the two spreads do not touch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from harness.results import RESULTS, Line, every
from harness.spreads import ends, spread

SETTING = {"date", "commit", "versions", "seed", "threads"}
EFFORT = {"rounds", "steps", "checked", "unequal", "ties"}  # says how well, not what was measured


class Moved(NamedTuple):
    """A figure in both runs. verdict: same, lower or higher."""

    bench: str
    case: str
    figure: str
    before: Line
    after: Line
    verdict: str


def compare(before: str, after: str, *, times: bool = False) -> list[Moved]:
    """Figures of two commits (prefixes will do). times: absolute ones too, not only ratios.

    Raises ValueError where one of them has no results, naming those that have."""
    found = []
    known: set[str] = set()
    met = {before: 0, after: 0}
    for path in sorted(RESULTS.glob("*.jsonl")):
        sides: dict[str, dict[tuple[str, ...], dict[str, Line]]] = {before: {}, after: {}}
        for line in every(path.stem):
            known.add(line["commit"])
            for commit in (before, after):
                if line["commit"].startswith(commit):
                    sides[commit][_case(line)] = dict(_figures(line))
                    met[commit] += 1
        for case, figures in sides[after].items():
            for name, figure in figures.items():
                old = sides[before].get(case, {}).get(name)
                if old is not None and (times or "ratio" in figure):
                    said = ", ".join(case)
                    found.append(Moved(path.stem, said, name, old, figure, _verdict(old, figure)))
    for commit, count in met.items():
        if not count:
            raise ValueError(
                f"no results of commit {commit}; there are: {', '.join(sorted(known))}"
            )
    return found


def _case(line: Line) -> tuple[str, ...]:
    """What tells one line from another: its words and whole numbers, but for the setting and the effort."""
    plain = {
        key: value
        for key, value in line.items()
        if key not in SETTING | EFFORT and isinstance(value, str | int) and key != "note"
    }
    return tuple(f"{key} {value}" for key, value in sorted(plain.items()) if key != "bench")


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, Line]]:
    """All dicts with a middle and a spread, wherever they stand in a line."""
    if not isinstance(value, dict):
        return
    if {"p20", "p80"} <= value.keys() or {"ratio", "low", "high"} <= value.keys():
        yield name, value
        return
    for key, inner in value.items():
        yield from _figures(inner, f"{name}.{key}" if name else str(key))


def _verdict(before: Line, after: Line) -> str:
    (low, high), (low_now, high_now) = ends(before), ends(after)
    if low_now > high:
        return "higher"
    return "lower" if high_now < low else "same"


def view(moves: list[Moved]) -> str:
    """What moved, and how many did not."""
    lines = [
        f"{move.bench}: {move.case}: {move.figure} {move.verdict}, {spread(move.before, 3)} -> {spread(move.after, 3)}"
        for move in moves
        if move.verdict != "same"
    ]
    same = sum(move.verdict == "same" for move in moves)
    return "\n".join([*lines, f"{len(moves)} figures compared, {same} the same within their spreads"])  # fmt: skip
