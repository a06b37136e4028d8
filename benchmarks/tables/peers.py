"""Tables of ``bench_peers``: who agrees, who can do what, and what a token costs."""

from __future__ import annotations

from harness.results import Line, newest
from harness.spreads import spread
from tables.markdown import caption, table

KEYS = ("bench", "environment", "peer", "model", "operation", "vectors", "batch")
OURS = "steerfast"
ADDING = ("batch 1", "batch 4", "5 layers", "decode", "left padding")


def _facts() -> dict[str, Line]:
    lines = [line for line in newest("peers", *KEYS) if line["bench"] == "peers facts"]
    return {line["peer"]: line for line in lines}


def steps() -> list[Line]:
    """Times, each peer in the environment where it is at home; what stands beside it there only in ``main``."""
    facts = _facts()
    return [
        line
        for line in newest("peers", *KEYS)
        if line["bench"] == "peers step"
        and line["environment"] == facts.get(line["peer"], {"environment": "main"})["environment"]
    ]


def _ordered() -> list[str]:
    """Peers by what a decode step costs with them, steerfast first."""
    times: dict[str, list[float]] = {}
    for line in steps():
        times.setdefault(line["peer"], []).append(line["over_steerfast"]["ratio"])
    names = [name for name in _facts() if name in times]
    return sorted(names, key=lambda name: (name != OURS, sum(times[name]) / len(times[name])))


def agreement() -> str:
    """Every case of every peer."""
    facts = _facts()
    cases = list(next(iter(facts.values()))["outcomes"])
    rows = []
    for name in _ordered():
        if name.startswith(f"{OURS},"):
            continue
        cells = [_outcome(facts[name]["outcomes"][case]) for case in cases]
        rows.append((f"**{name}**" if name == OURS else name, *cells))
    note = (
        "Greatest difference of logits from the float64 model, of the greatest logit; 0: the very bits. -: it has no "
        f"such operation. {caption(facts.values())}"
    )
    return table(("peer", *cases), rows, note)


def _outcome(outcome: Line) -> str:
    if outcome["status"] == "has none":
        return "-"
    if outcome["status"] == "fails":
        return "**fails**"
    error = outcome["error"]
    shown = "0" if error == 0 else f"{error:.0e}"
    return f"**wrong: {shown}**" if outcome["status"] == "wrong" else shown


def defects() -> str:
    """What is wrong or fails, with the reason."""
    facts = _facts()
    rows = [
        (name, facts[name]["package"] or "-", case, outcome["status"], outcome["reason"])
        for name in _ordered()
        for case, outcome in facts[name]["outcomes"].items()
        if outcome["status"] in ("wrong", "fails")
    ]
    return table(("peer", "package", "case", "", "what came"), rows, caption(facts.values()))


def notes() -> str:
    """How each one works."""
    facts = _facts()
    rows = [
        (name, facts[name]["package"] or "-", facts[name]["licence"] or "-", facts[name]["site"], facts[name]["note"])
        for name in _ordered()
    ]  # fmt: skip
    head = ("peer", "package", "licence", "steers", "how")
    return table(head, rows, caption(facts.values()))


def peers() -> str:
    """The short table: all of it in a line each."""
    facts = _facts()
    times = {_key(line): line for line in steps() if line["operation"] == "add"}
    thin = sorted({batch for _, model, _, batch in times if model == "thin 7B"})
    real = next(model for _, model, _, _ in times if model != "thin 7B")
    batches = sorted({batch for _, model, _, batch in times if model == real})
    rows = []
    for name in _ordered():
        fact = facts[name]
        extra = fact["extra_per_layer"]["add"]
        cells: list[str] = [
            _agrees(fact),
            "yes" if fact["per_row"] else "no",
            fact["fullgraph"],
            f"{extra['kernels']:+.1f}",
            f"{extra['bytes']:+.1f}",
            f"{extra['syncs']:.0f}",
        ]
        cells += [
            spread(times[name, "thin 7B", 5, batch]["added_us"], 0) for batch in (thin[0], thin[-1])
        ]
        cells += [
            spread(times[name, real, count, batch]["over_steerfast"], 2)
            for count in (1, 5)
            for batch in batches
        ]
        rows.append((f"**{name}**" if name.startswith(OURS) else name, *cells))
    stock = [
        *(["-"] * 6),
        *(spread(times["stock", "thin 7B", 5, batch]["a_added_us"], 0) for batch in (thin[0], thin[-1])),
        *(spread(times["stock", real, k, batch]["over_steerfast"], 2) for k in (1, 5) for batch in batches),
    ]  # fmt: skip
    again = [
        *(["-"] * 8),
        *(spread(times[OURS, real, k, batch]["a_over_a"], 2) for k in (1, 5) for batch in batches),
    ]
    rows += [("nobody steers (A/A)", *stock), ("steerfast again (A/A)", *again)]
    head = (
        "", "agrees", "a plan a row", "one graph", "kernels", "streams moved", "syncs",
        *(f"us a layer, batch {batch}" for batch in (thin[0], thin[-1])),
        *(f"{count} x add, batch {batch}" for count in ("1", "5") for batch in batches),
    )  # fmt: skip
    taken = sorted({line["steps"] for line in times.values() if line["model"] == real})
    note = (
        "agrees: greatest error of an addition, and what is wrong; docs/benchmarks.md has every case. kernels, streams moved (bytes, in "
        "tensors [batch, D]), syncs: what a step has more than the stock model's, for each of 5 steered layers of 8. us a layer: what a "
        "steered layer adds to a step of the stock model, at Llama-2-7B's width with everything but the stream left out (median "
        f"[p20, p80]). x add: time of a decode step of {real} over steerfast's in the same process, 95% interval, "
        f"{taken[0]} to {taken[-1]} steps in turn. {caption(times.values())}"
    )
    return table(head, rows, note)


def costs() -> str:
    """Kernels, bytes and syncs of each operation, for a steered layer."""
    facts = _facts()
    rows = []
    for name in _ordered():
        cells = []
        for operation in ("add", "preserve", "ablate"):
            extra = facts[name]["extra_per_layer"].get(operation)
            shown = (
                "-"
                if extra is None
                else f"{extra['kernels']:+.1f} / {extra['bytes']:+.1f} / {extra['syncs']:.0f}"
            )
            cells.append(shown)
        rows.append((f"**{name}**" if name.startswith(OURS) else name, *cells))
    head = ("kernels / streams moved / syncs", "add", "preserve", "ablate")
    note = (
        "A decode step of 4 rows over the stock model's, for each of 5 steered layers of 8, as the dispatcher sees it. A stream moved is as many bytes as a "
        f"[4, 1, D] tensor has. {caption(facts.values())}"
    )
    return table(head, rows, note)


def _agrees(fact: Line) -> str:
    outcomes = fact["outcomes"]
    worst = [outcomes[case]["error"] for case in ADDING if outcomes[case]["status"] == "ok"]
    told = [f"{case} {one['status']}" for case, one in outcomes.items() if one["status"] in ("wrong", "fails")]  # fmt: skip
    said = [f"{max(worst):.0e}"] if worst else []
    if not worst and not told:
        return "not asked"
    return "; ".join(said + [f"**{one}**" for one in told])


def _key(line: Line) -> tuple[str, str, int, int]:
    return line["peer"], line["model"], line["vectors"], line["batch"]


def peer_times() -> str:
    """Milliseconds of a step, all models, batches and counts."""
    rows = []
    lines = steps()
    order = ["stock", *_ordered()]
    for line in sorted(
        lines, key=lambda one: (one["operation"], *_key(one)[1:], order.index(one["peer"]))
    ):
        rows.append(
            (
                f"{line['model']}, {line['dtype']}", f"{line['vectors']} x {line['operation']}", line["batch"], line["peer"],
                spread(line["ms"], 2), spread(line["over_steerfast"], 3), spread(line["over_stock"], 3),
                spread(line["added_us"], 0), spread(line["a_over_a"], 3),
            )
        )  # fmt: skip
    head = (
        "model", "vectors", "batch", "", "a step, ms", "over steerfast, 95%", "over stock, 95%",
        "us a steered layer, over stock", "steerfast, A/A, 95%",
    )  # fmt: skip
    return table(head, rows, f"Median [p20, p80] where no interval is named. {caption(lines)}")
