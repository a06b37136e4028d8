"""Tables of what was measured on GPUs, which stand in a section of their own: the other tables are of processors."""

from __future__ import annotations

from collections.abc import Sequence

from harness.results import Line, newest
from harness.spreads import spread
from tables.markdown import caption, table

NOT_YET = "Not yet run on a GPU."
OP_VERSIONS = ("eager", "unsteered", "steered", "distinct", "8 reads", "without reads", "no overlap", "cold", "triton")  # fmt: skip
CHAINED = ("steered", "distinct", "8 reads", "without reads")


def last_run() -> Line | None:
    """The run as a whole that was brought back last, with how its stages ended."""
    runs = [line for line in newest("gpu_check", "bench", gpu=True) if "outcomes" in line]
    return runs[-1] if runs else None


def said_of(run: Line | None, stage: str) -> str:
    """What a stage came to, or nothing."""
    outcomes = [] if run is None else run["outcomes"]
    return next((str(one["said"]) for one in outcomes if one["name"] == stage), "")


def stages() -> str:
    run = last_run()
    if run is None:
        return NOT_YET
    rows = [
        (one["name"], one["result"], f"{one['seconds']:.0f}", one["said"].replace("|", "/"))
        for one in run["outcomes"]
    ]
    return table(("stage", "how it ended", "seconds", "what it came to"), rows, caption([run]))


def decode() -> str:
    lines = newest("decode", "model", "dtype", "mode", "batch", "vectors", "operator", "plans", gpu=True)  # fmt: skip
    if not lines:
        return NOT_YET
    variants = ("stock", "hooks", "patched", "steered", "without reads", "room for reads")
    compared = ("steered_over_patched", "steered_over_stock", "hooks_over_stock", "a_over_a")
    rows = [
        (
            f"{line['device']}, {line['backend']}", f"{line['model']}, {line['dtype']}, {line['mode']}", line["batch"], line["distinct"],
            f"{line['vectors']} x {line['operator']}", *_cells(line["ms"], variants, 2), *_cells(line["ratios"], compared, 3),
        )
        for line in lines
    ]  # fmt: skip
    head = (
        "GPU, kernels", "model, mode", "batch", "plans", "terms, each at every layer", *(f"{name}, ms" for name in variants),
        "steered / patched, 95%", "steered / stock, 95%", "hooks / stock, 95%", "A/A, 95%",
    )  # fmt: skip
    least = min(line["steps"] for line in lines)
    return table(head, rows, f"{least} steps each or more, one by one in turn. {caption(lines)}")


def ops() -> str:
    lines = _of("gpu ops")
    if not lines:
        return NOT_YET
    rows = [
        (
            line["device"], line["D"], line["N"], line["operands"], *_cells(line["us"], ("launch", "copy", *OP_VERSIONS), 2),
            f"{line['of_copy']['steered']['ratio']:.0%}", spread(line["steered_over_unsteered"], 3), spread(line["a_over_a"], 3),
        )
        for line in lines
    ]  # fmt: skip
    head = (
        "GPU", "D", "rows N", "operands", "empty kernel, us", "copy, us", *(f"{name}, us" for name in OP_VERSIONS),
        "of a copy's speed", "steered / unsteered", "A/A",
    )  # fmt: skip
    return table(head, rows, f"Median [p20, p80] of {lines[0]['rounds']} rounds. {caption(lines)}")


def chain() -> str:
    lines = _of("gpu chain")
    if not lines:
        return NOT_YET
    rows = [
        (line["device"], line["D"], line["N"], *_cells(line["added_us"], CHAINED, 2), spread(line["a_over_a"], 3))
        for line in lines
    ]  # fmt: skip
    head = ("GPU", "D", "rows N", *(f"{name} adds, us" for name in CHAINED), "A/A")
    return table(head, rows, f"Median [p20, p80] of {lines[0]['rounds']} rounds. {caption(lines)}")


def _of(bench: str) -> list[Line]:
    return [line for line in newest("gpu_ops", "bench", "dtype", "D", "N", gpu=True) if line["bench"] == bench]  # fmt: skip


def _cells(figures: Line, names: Sequence[str], digits: int) -> list[str]:
    return [spread(figures[name], digits) if name in figures else "-" for name in names]
