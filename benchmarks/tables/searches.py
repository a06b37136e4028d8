"""Tables of activation generation and of the grid search: what a researcher waits for."""

from __future__ import annotations

from harness.results import newest
from harness.spreads import spread
from tables.markdown import caption, table


def extract() -> str:
    lines = newest("extract", "environment", "pairs", "method")
    shown = [
        line for line in lines if line["method"] != "steerfast" or line["environment"] == "main"
    ]
    rows = [
        (
            f"{line['count']} {line['pairs']}", line["method"], line["gives"], spread(line["seconds"], 2),
            spread(line["over_steerfast"], 2, "x"), f"{line['error']:.1e}" if "mean" in line["gives"] else "-",
            f"{line['cosine']:.4f}", spread(line["a_over_a"], 2),
        )
        for line in shown
    ]  # fmt: skip
    head = (
        "pairs", "method", "gives", "seconds", "over steerfast", "relative error", "least cosine", "A/A",
    )  # fmt: skip
    note = f"Median [p20, p80] of {lines[0]['rounds']} rounds, float32. {caption(lines)}"
    return table(head, rows, note)


def sweep() -> str:
    lines = newest("sweep", "model", "dtype", "data")
    rows = []
    for line in lines:
        every = line["ms_per_cell"].values()
        means = {
            version: sum(each[version] for each in every) / len(every)
            for version in ("paper", "forward", "forked")
        }
        tokens = sum(line["tokens"].values()) / len(line["tokens"])
        rows.append(
            (
                f"{line['model']}, {line['dtype']}",
                f"{', '.join(line['tokens'])} ({line['data']}), {tokens:.0f} tokens",
                *(f"{means[version]:.1f}" for version in ("paper", "forward", "forked")),
                *(spread(line[name], 2, "x") for name in ("speedup", "batching", "forking", "speedup_over_forward")),
                spread(line["a_over_a"], 2),
                f"{line['checked']}: {line['unequal']}, {line['ties']}",
            )
        )  # fmt: skip
    head = (
        "model", "questions", "paper's loop, ms a cell", "forward alone, ms", "engine, ms", "speedup",
        "of it batching", "of it forking", "over forward alone", "A/A", "cells compared: unequal, ties",
    )  # fmt: skip
    note = f"Median [p20, p80] of {lines[-1]['rounds']} rounds. {caption(lines)}"
    return table(head, rows, note)
