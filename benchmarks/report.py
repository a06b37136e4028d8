"""Tables and plots from ``results/*.jsonl``: ``python benchmarks/report.py --write``.

docs/benchmarks.md holds every table between markers, ``<!-- results:NAME -->``, and README.md two small ones, ``speed`` and
``backends``; plots are written to docs/benchmarks/. A test fails where a document and the results differ. ``--compare A B`` shows
what moved between the results of two commits. ``--import OUT`` takes in what ``gpu_check.sh`` left in a folder, and writes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import brought_back, regression
from tables import (
    backends,
    charts,
    cost,
    gpu_runs,
    machine_code,
    ops,
    peers,
    searches,
    speed,
    steps,
)

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
TABLES: dict[str, Callable[[], str]] = {
    "speed": speed.speed,
    "backends": backends.backends,
    "peers": peers.peers,
    "agreement": peers.agreement,
    "defects": peers.defects,
    "peer-notes": peers.notes,
    "peer-costs": peers.costs,
    "peer-times": peers.peer_times,
    "ops": ops.ops,
    "ops-against": ops.ops_against,
    "roofline": ops.roofline,
    "sass": machine_code.sass,
    "scale": cost.scale,
    "cost-model": cost.cost_model,
    "predictions": cost.predictions,
    "decode": steps.decode,
    "router": steps.router,
    "extract": searches.extract,
    "sweep": searches.sweep,
    "serving": steps.serving,
    "gpu-stages": gpu_runs.stages,
    "gpu-decode": gpu_runs.decode,
    "gpu-ops": gpu_runs.ops,
    "gpu-chain": gpu_runs.chain,
}


def filled(text: str) -> str:
    """A document with every table between its markers made anew. ValueError for a marker that names no table."""
    for name in re.findall(r"<!-- results:([\w-]+) -->", text):
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are: {', '.join(TABLES)}")
        pattern = rf"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)"
        made = f"{TABLES[name]()}\n"
        text, count = re.subn(
            pattern, lambda m, made=made: m[1] + made + m[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"results:{name} stands {count} times, or its end is missing")
    return text


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="change the documents and the plots")
    parser.add_argument(
        "--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="results of two commits"
    )
    parser.add_argument("--times", action="store_true", help="with --compare: not only ratios")
    parser.add_argument(
        "--import", dest="out", type=Path, help="a folder of gpu_check.sh; implies --write"
    )
    arguments = parser.parse_args(given)
    if arguments.compare:
        print(regression.view(regression.compare(*arguments.compare, times=arguments.times)))
        return
    if arguments.out is not None:
        for name, count in brought_back.merge(arguments.out).items():
            print(f"{name}.jsonl: {count} lines")
        arguments.write = True
    for path in DOCUMENTS:
        text = filled(path.read_text(encoding="utf-8"))
        if arguments.write:
            path.write_text(text, encoding="utf-8")
        else:
            print(text)
    if arguments.write:
        charts.write()


if __name__ == "__main__":
    main()
