"""Tables and plots from ``results/*.jsonl``: ``python benchmarks/report.py --write``.

README.md and docs/benchmarks.md hold tables between markers, ``<!-- results:NAME -->``; plots are written to
docs/benchmarks/. A test fails where a document and the results differ. ``--compare A B`` shows what moved between the
results of two commits.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import charts
import cost_tables
import peer_tables
import regression
import tables

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
TABLES: dict[str, Callable[[], str]] = {
    "ops": lambda: tables.ops(short=True),
    "ops-all": tables.ops,
    "ops-against": tables.ops_against,
    "decode": tables.decode,
    "router": tables.router,
    "sweep": tables.sweep,
    "extract": tables.extract,
    "serving": tables.serving,
    "peers": peer_tables.peers,
    "peer-times": peer_tables.peer_times,
    "agreement": peer_tables.agreement,
    "defects": peer_tables.defects,
    "peer-costs": peer_tables.costs,
    "peer-notes": peer_tables.notes,
    "roofline": cost_tables.roofline,
    "scale": cost_tables.scale,
    "cost-model": cost_tables.cost_model,
    "predictions": cost_tables.predictions,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="change the documents and the plots")
    parser.add_argument(
        "--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="results of two commits"
    )
    parser.add_argument("--times", action="store_true", help="with --compare: not only ratios")
    arguments = parser.parse_args()
    if arguments.compare:
        print(regression.view(regression.compare(*arguments.compare, times=arguments.times)))
        return
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
