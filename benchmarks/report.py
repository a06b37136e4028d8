"""README's tables from ``results/*.jsonl``: ``python benchmarks/report.py --write``.

Each table stands between markers in README.md; a test fails if the file and the results differ.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"


def latest(name: str, *keys: str) -> list[dict[str, Any]]:
    """The newest line of ``results/<name>.jsonl`` for each combination of ``keys``, in file order."""
    path = RESULTS / f"{name}.jsonl"
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        line = json.loads(text)
        newest[tuple(line.get(key) for key in keys)] = line
    return list(newest.values())


def caption(line: dict[str, Any]) -> str:
    versions = line["versions"]
    return (
        f"{line['device']}; torch {versions['torch']}, transformers {versions['transformers']}; "
        f"commit {line['commit']}, {line['date'][:10]}"
    )


def ops_table() -> str:
    found = latest("ops", "form", "dtype", "D", "N")
    lines = [line for line in found if line["bench"] == "ops" and line["D"] == 4096]
    rows = [
        "| form | dtype | rows N | eager + hook, us | fused unsteered, us | fused steered, us | steered against eager | steered / unsteered | A/A |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        us = {name: time["median"] for name, time in line["us"].items()}
        spread = line["us"]["steered"]
        rows.append(
            f"| {line.get('form', 'one vector, before')} | {line['dtype']} | {line['N']} | {us['eager']:.1f} | {us['unsteered']:.1f} "
            f"| {us['steered']:.1f} [{spread['p20']:.1f}, {spread['p80']:.1f}] "
            f"| {line['speedup_vs_eager']:.1f}x | {line['steered_over_unsteered']:.2f} | {line['a_over_a']:.2f} |"
        )
    return "\n".join(
        [
            *rows,
            "",
            f'D = 4096, median [p20, p80]. {caption(lines[-1])}; rows "before": {caption(lines[0])}',
        ]
    )


def decode_table() -> str:
    keys = ("model", "dtype", "mode", "batch", "vectors", "operator", "plans")
    lines = [line for line in latest("decode", *keys) if "mode" in line]
    rows = [
        "| model, mode | batch | plans | terms, each at every layer | stock, ms | hooks, ms | patched, ms | steered, ms "
        "| steered / patched, 95% | steered / stock, 95% | A/A, 95% | steering, of a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        ms = {name: f"{time['median']:.2f}" for name, time in line["ms"].items()}
        over = [
            f"{one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for one in (
                line["ratios"][name]
                for name in ("steered_over_patched", "steered_over_stock", "a_over_a")
            )
        ]
        cells = [
            f"{line['model']}, {line['dtype']}, {line['mode']}",
            line["batch"],
            f"{line['distinct']} ({line['plans']})",
            f"{line['vectors']} x {line['operator']}",
            ms["stock"],
            ms.get("hooks", "-"),
            ms["patched"],
            ms["steered"],
            *over,
            f"{line['steering_share']:.2%}" if "steering_share" in line else "-",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    least = min(line["steps"] for line in lines)
    return "\n".join(
        [*rows, "", f"{least} steps each or more, one by one in turn. {caption(lines[-1])}"]
    )


def router_table() -> str:
    lines = latest("router", "requests")
    rows = [
        "| requests, each with its plan on 32 layers | wrapped entry to buffer, us | the router in it | the same in Python | A/A |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [
            f"{time['median']:.1f} [{time['p20']:.1f}, {time['p80']:.1f}]"
            for time in (line["us"][name] for name in ("route", "fill", "python"))
        ]
        rows.append(f"| {line['requests']} | {' | '.join(cells)} | {line['a_over_a']:.2f} |")
    return "\n".join([*rows, "", f"Median [p20, p80]. {caption(lines[-1])}"])


def sweep_table() -> str:
    lines = latest("sweep", "model", "dtype", "data")
    rows = [
        "| model | questions | paper's loop, ms a cell | forward alone, ms | engine, ms | speedup | of it batching | of it forking "
        "| over forward alone | A/A | cells compared: unequal, ties |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        means = {
            version: sum(each[version] for each in line["ms_per_cell"].values())
            / len(line["ms_per_cell"])
            for version in ("paper", "forward", "forked")
        }
        ratios = [
            f"{one['ratio']:.2f}x [{one['low']:.2f}, {one['high']:.2f}]"
            for one in (line["speedup"], line["batching"], line["forking"])
        ]
        tokens = sum(line["tokens"].values()) / len(line["tokens"])
        cells = [
            f"{line['model']}, {line['dtype']}",
            f"{line['data']}, {tokens:.0f} tokens",
            *(f"{means[version]:.1f}" for version in ("paper", "forward", "forked")),
            *ratios,
            f"{line['speedup_over_forward']['ratio']:.2f}x",
            f"{line['a_over_a']['ratio']:.2f}",
            f"{line['checked']}: {line['unequal']}, {line['ties']}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    about = f"Medians of {lines[-1]['rounds']} rounds [least, greatest]. {caption(lines[-1])}"
    return "\n".join([*rows, "", about])


def serving_table() -> str:
    lines = latest("serving", "model", "dtype", "eager", "load", "mode", "variant")
    rows = [
        "| model, engine | requests | mode, plans | step, ms | tokens/s | step over stock, 95% | A/A, 95% | prompts over stock, 95% | A/A, 95% |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        step = line["step_ms"]["other"]
        over = [
            f"{one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for one in (
                line[name]
                for name in ("step_over_stock", "step_a_a", "prompt_over_stock", "prompt_a_a")
            )
        ]
        cells = [
            f"{line['model']}, {line['dtype']}, {'eager' if line['eager'] else 'compiled'}",
            line["load"],
            f"{line['mode']}, {line['variant']}",
            f"{step['median']:.2f} [{step['p20']:.2f}, {step['p80']:.2f}]",
            line["tokens_per_second"],
            *over,
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*rows, "", caption(lines[-1])])


TABLES = {
    "ops": ops_table,
    "decode": decode_table,
    "router": router_table,
    "sweep": sweep_table,
    "serving": serving_table,
}


def filled(text: str) -> str:
    """A document with every table between its markers made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)"
        made = f"{table()}\n"
        text, count = re.subn(
            pattern, lambda m, made=made: m[1] + made + m[2], text, flags=re.DOTALL
        )
        assert count <= 1, f"results:{name} stands twice"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="change README.md instead of printing it"
    )
    arguments = parser.parse_args()
    text = filled(README.read_text(encoding="utf-8"))
    if arguments.write:
        README.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
