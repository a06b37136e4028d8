"""Tables of a decode step, of the router in it, and of serving."""

from __future__ import annotations

from harness.results import newest
from harness.spreads import spread
from tables.markdown import caption, table


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
