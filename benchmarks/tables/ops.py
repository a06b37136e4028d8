"""Tables of the ops: against what else one could do, and against what their bytes would cost."""

from __future__ import annotations

from harness.results import newest
from harness.spreads import spread
from tables.markdown import caption, table

OP_HEAD = (
    "form", "dtype", "D", "rows N", "eager + hook, us", "fused unsteered, us", "fused steered, us",
    "eager / steered", "steered / unsteered", "a plan a row / unsteered", "A/A",
)  # fmt: skip


def ops() -> str:
    lines = [line for line in newest("ops", "bench", "form", "dtype", "D", "N") if "form" in line]
    rows = []
    for line in lines:
        us, ratios = line["us"], line["ratios"]
        distinct = ratios.get("distinct_over_unsteered")
        rows.append(
            (
                line["form"], line["dtype"], line["D"], line["N"],
                spread(us["eager"]), spread(us["unsteered"]), spread(us["steered"]),
                spread(ratios["speedup_vs_eager"], 1, "x"), spread(ratios["steered_over_unsteered"], 2),
                "-" if distinct is None else spread(distinct, 2), spread(ratios["a_over_a"], 2),
            )
        )  # fmt: skip
    note = f"Median [p20, p80] of {lines[0]['rounds']} rounds. {caption(lines)}"
    return table(OP_HEAD, rows, note)


def ops_against() -> str:
    """The same ops against what else one could do, and many vectors against one."""
    lines = newest("ops", "bench", "form", "dtype", "D", "N")
    rows = []
    for line in lines:
        if "speedup_vs_compiled" in line.get("ratios", {}):
            for name, what in (
                ("speedup_vs_batched", "two matrix products"),
                ("speedup_vs_compiled", "torch.compile of the reference"),
            ):
                if name in line["ratios"]:
                    ratio, control = line["ratios"][name], line["ratios"]["a_over_a"]
                    shown = spread(ratio, 1, "x"), spread(control, 2)
                    rows.append((f"{line['form']}, N = {line['N']}", what, *shown))
        elif line["bench"] == "ops_k":
            ratio, control = line["ratios"]["k16_over_k1"], line["ratios"]["a_over_a"]
            what = "sixteen vectors over one"
            rows.append((f"additive, N = {line['N']}", what, spread(ratio, 2), spread(control, 2)))
    head = ("bfloat16, D = 4096", "against", "ratio", "A/A")
    return table(head, rows, f"Median [p20, p80]. {caption(lines)}")


def roofline() -> str:
    lines = newest("roofline", "op", "form", "dtype", "N")
    rows = [
        (
            f"`{line['op']}`", line["form"], line["dtype"], line["N"], f"{line['bytes'] / 1e6:.3g}",
            spread(line["us"]["op"]), spread(line["floor"]), line["bound"], spread(line["over_floor"], 2),
            f"{line['bytes_per_second'] / 1e9:.1f}", spread(line["a_over_a"], 2),
        )
        for line in lines
    ]  # fmt: skip
    head = (
        "op, D = 4096", "form", "dtype", "rows N", "MB moved", "op, us", "floor, us", "bound by", "op / floor",
        "GB/s", "A/A",
    )  # fmt: skip
    memory = ", ".join(sorted({f"{line['memory'] / 1e9:.1f} GB/s" for line in lines}))
    note = (
        f"Median [p20, p80] of {lines[0]['rounds']} rounds. A copy that no cache holds reads and writes {memory} "
        f"here. {caption(lines)}"
    )
    return table(head, rows, note)
