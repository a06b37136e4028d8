"""``pytest benchmarks --benchmark-only``: the quick op benchmarks, beside the committed baseline.

A new baseline: ``pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/baseline.json``. Times of
another machine, or of this one on another day, differ as a whole: compare a line with those of its group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BASELINE = Path(__file__).parent / "results" / "baseline.json"


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if getattr(options, "benchmark_compare", "") is None and BASELINE.exists():
        options.benchmark_compare = str(BASELINE)
        options.benchmark_columns = ["median", "iqr", "min", "rounds"]


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    """What a baseline keeps: figures and the processor, not single times, names of hosts or paths."""
    machine = output_json["machine_info"]
    kept = ("processor", "machine", "python_version", "system")
    output_json["machine_info"] = {key: machine[key] for key in kept} | {
        "cpu": {"brand_raw": machine.get("cpu", {}).get("brand_raw", "")}
    }
    output_json["commit_info"] = {"id": output_json["commit_info"].get("id", "")[:7]}
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)
