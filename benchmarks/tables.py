"""Tables of the op, decode, router, sweep, extraction and serving benchmarks."""

from __future__ import annotations

from results_of import caption, newest, spread, table

OP_HEAD = (
    "form", "dtype", "D", "rows N", "eager + hook, us", "fused unsteered, us", "fused steered, us",
    "eager / steered", "steered / unsteered", "a plan a row / unsteered", "A/A",
)  # fmt: skip


def ops(short: bool = False) -> str:
    """Short: bfloat16 at Llama-2-7B's width."""
    lines = [line for line in newest("ops", "bench", "form", "dtype", "D", "N") if "form" in line]
    if short:
        lines = [line for line in lines if (line["dtype"], line["D"]) == ("bfloat16", 4096)]
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


def decode() -> str:
    keys = ("model", "dtype", "mode", "batch", "vectors", "operator", "plans")
    lines = newest("decode", *keys)
    rows = []
    for line in lines:
        ms, ratios = line["ms"], line["ratios"]
        share = line.get("steering_share")
        rows.append(
            (
                f"{line['model']}, {line['dtype']}, {line['mode']}", line["batch"],
                f"{line['distinct']} ({line['plans']})", f"{line['vectors']} x {line['operator']}",
                spread(ms["stock"]), spread(ms["hooks"]) if "hooks" in ms else "-",
                spread(ms["patched"]), spread(ms["steered"]),
                spread(ratios["steered_over_patched"], 3), spread(ratios["steered_over_stock"], 3),
                spread(ratios["a_over_a"], 3), "-" if share is None else f"{share:.2%}",
            )
        )  # fmt: skip
    head = (
        "model, mode", "batch", "plans", "terms, each at every layer", "stock, ms", "hooks, ms",
        "patched, ms", "steered, ms", "steered / patched, 95%", "steered / stock, 95%", "A/A, 95%",
        "steering, of a step",
    )  # fmt: skip
    least = min(line["steps"] for line in lines)
    return table(head, rows, f"{least} steps each or more, one by one in turn. {caption(lines)}")


def router() -> str:
    lines = newest("router", "requests")
    rows = [
        (line["requests"], *(spread(line["us"][name]) for name in ("route", "route again", "fill", "python")))
        for line in lines
    ]  # fmt: skip
    head = (
        "requests, each with its plan on 32 layers", "wrapped entry to buffer, us", "the same again (A/A)",
        "the router in it", "the router in Python",
    )  # fmt: skip
    return table(head, rows, f"Median [p20, p80]. {caption(lines)}")


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


def serving() -> str:
    lines = newest("serving", "model", "dtype", "eager", "load", "mode", "variant")
    rows = [
        (
            f"{line['model']}, {line['dtype']}, {'eager' if line['eager'] else 'compiled'}", line["load"],
            f"{line['mode']}, {line['variant']}", spread(line["step_ms"]["other"], 2), line["tokens_per_second"],
            *(spread(line[name], 3) for name in ("step_over_stock", "step_a_a", "prompt_over_stock", "prompt_a_a")),
        )
        for line in lines
    ]  # fmt: skip
    head = (
        "model, engine", "requests", "mode, plans", "step, ms", "tokens/s", "step over stock, 95%", "A/A, 95%",
        "prompts over stock, 95%", "A/A, 95%",
    )  # fmt: skip
    return table(head, rows, caption(lines))
