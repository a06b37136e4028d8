"""README's table: steerfast beside what else one would use, a line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from harness.results import Line, newest
from harness.spreads import Figure, ends, spread
from tables.markdown import caption, table

HEAD = ("what is measured", "steerfast", "what else one would use", "ratio [interval]")
NOTE = "Ratio: the other's time over steerfast's, in one run. Interval: 95% of decode steps, else 20 to 80% of rounds."
SCALES = ((0.2, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us"))  # from so many seconds on
STEP = "decode step of SmolLM2-135M, every layer steered"
OP = "residual add, steering, norm (D = 4096)"


class Row(NamedTuple):
    """ours, theirs: times of equal work, in seconds. ratio: theirs over ours, with its spread. line: where it is from."""

    what: str
    ours: float
    other: str
    theirs: float
    ratio: Figure
    line: Line


def speed() -> str:
    """Of the machine that was measured last, of those on which every row was."""
    devices = reversed(dict.fromkeys(line["device"] for line in newest("decode")))
    rows = next(found for device in devices if (found := _rows(device)))
    cells = [
        (row.what, _time(row.ours), f"{row.other}: {_time(row.theirs)}", spread(row.ratio, 2))
        for row in rows
    ]
    return table(HEAD, cells, f"{NOTE}\n{caption(row.line for row in rows)}")


def _rows(device: str) -> list[Row]:
    """All rows, or none where one was not measured on this device."""
    try:
        return [make(lambda name, **said: _line(name, device, said)) for make in ROWS]
    except LookupError:
        return []


def _line(name: str, device: str, said: dict[str, Any]) -> Line:
    """The last line of the newest commit on a device that says all this. LookupError where there is none."""
    wanted = {"device": device, **said}
    return [line for line in newest(name, *wanted) if wanted.items() <= line.items()][-1]


Find = Callable[..., Line]


def _step(batch: int, what: str) -> Callable[[Find], Row]:
    def row(find: Find) -> Row:
        line = find("decode", model="SmolLM2-135M-Instruct", mode="eager", batch=batch, vectors=1, operator="add")  # fmt: skip
        ours, theirs = (line["ms"][name]["median"] / 1e3 for name in ("steered", "stock"))
        ratio = _inverse(line["ratios"]["steered_over_stock"])
        return Row(what, ours, "transformers, unsteered", theirs, ratio, line)

    return row


def _op(rows: int, what: str) -> Callable[[Find], Row]:
    def row(find: Find) -> Row:
        line = find("ops", form="additive", dtype="bfloat16", D=4096, N=rows)
        ours, theirs = (line["us"][name]["median"] / 1e6 for name in ("steered", "eager"))
        return Row(what, ours, "eager and a hook", theirs, line["ratios"]["speedup_vs_eager"], line)

    return row


def _extraction(find: Find) -> Row:
    both = [
        find("extract", pairs="questions", environment="main", method=method)
        for method in ("steerfast", "steering-vectors")
    ]
    ours, theirs = (line["seconds"]["median"] for line in both)
    what = f"vectors of all layers from {both[1]['count']} questions"
    return Row(what, ours, "steering-vectors", theirs, both[1]["over_steerfast"], both[1])


def _sweep(find: Find) -> Row:
    line = find("sweep", model="SmolLM2-135M-Instruct", dtype="float32")
    cells = line["ms_per_cell"].values()
    ours, theirs = (
        sum(each[name] for each in cells) / len(cells) / 1e3 for name in ("forked", "paper")
    )
    what = "a cell of the paper's grid search"
    return Row(what, ours, "the paper's loop", theirs, line["speedup"], line)


def _sixteen(find: Find) -> Row:
    line = find("ops", bench="ops_k", N=64)
    ours, theirs = (line["us"][name]["median"] / 1e6 for name in ("k16", "k1"))
    ratio = _inverse(line["ratios"]["k16_over_k1"])
    return Row("the same of 64 rows with 16 vectors", ours, "with 1 vector", theirs, ratio, line)


def _plans(find: Find) -> Row:
    about = {"model": "thin 7B", "operation": "add", "vectors": 5, "batch": 64, "environment": "main"}  # fmt: skip
    each, one = (
        find("peers", peer=peer, **about) for peer in ("steerfast, a plan a row", "steerfast")
    )
    ours, theirs = (line["ms"]["median"] / 1e3 for line in (each, one))
    ratio = _inverse(each["over_steerfast"])
    what = "decode step of 64 rows, a plan a row (7B's width)"
    return Row(what, ours, "one plan for all", theirs, ratio, each)


ROWS: tuple[Callable[[Find], Row], ...] = (
    _step(1, STEP),
    _step(16, "the same of 16 rows, a plan a row"),
    _op(1, OP),
    _op(64, "the same of 64 rows"),
    _sixteen,
    _plans,
    _extraction,
    _sweep,
)


def _inverse(ratio: Figure) -> Figure:
    """The other way round; the ends change places."""
    low, high = ends(ratio)
    names = ("p20", "p80") if "p20" in ratio else ("low", "high")
    return {"ratio": 1 / ratio["ratio"], names[0]: 1 / high, names[1]: 1 / low}


def _time(seconds: float) -> str:
    """Three digits, in seconds, milliseconds or microseconds."""
    factor, unit = next(scale for least, *scale in SCALES if seconds >= least)
    return f"{seconds * factor:#.3g}".rstrip(".") + f" {unit}"
