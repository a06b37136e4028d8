"""Interleaved timing and result lines, shared by all benchmarks."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import steerfast
from steerfast import backends

RESULTS = Path(__file__).parent / "results"


def interleave(
    versions: Mapping[str, Callable[[], object]], *, rounds: int = 9, round_seconds: float = 0.05
) -> dict[str, dict[str, float]]:
    """{name: {median, p20, p80}} in microseconds per call, and per version the median of its rounds.

    A round calls each version in turn for about ``round_seconds``; the number of calls is fixed by a
    warm-up, so that every round of a version does the same work.
    """
    calls = {name: _calls_for(function, round_seconds) for name, function in versions.items()}
    times: dict[str, list[float]] = {name: [] for name in versions}
    names = list(versions)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            function = versions[name]
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append(1e6 * (time.perf_counter() - begin) / calls[name])
    return {name: summary(series) for name, series in times.items()}


def _calls_for(function: Callable[[], object], seconds: float) -> int:
    function()
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() - begin < seconds / 2 or count < 2:
        function()
        count += 1
    return max(1, int(count * seconds / (time.perf_counter() - begin)))


def summary(series: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile."""
    cuts = statistics.quantiles(series, n=10, method="inclusive")
    return {"median": statistics.median(series), "p20": cuts[1], "p80": cuts[7]}


def ratio_interval(above: list[float], below: list[float], seed: int = 0) -> dict[str, float]:
    """Ratio of medians of paired series and its 95% interval, by bootstrap over pairs."""
    pairs = torch.tensor([above, below], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(pairs.shape[1], (2000, pairs.shape[1]), generator=generator)
    medians = pairs[:, picks].median(-1).values
    ratios = (medians[0] / medians[1]).sort().values
    whole = pairs.median(-1).values
    return {
        "ratio": float(whole[0] / whole[1]),
        "low": float(ratios[50]),
        "high": float(ratios[1949]),
    }


def setting(seed: int) -> dict[str, Any]:
    """Commit, device, versions, threads and seed: what a figure means nothing without."""
    from importlib.metadata import version

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _changed() else ""),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "steerfast": steerfast.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "seed": seed,
    }


def device_name() -> str:
    """The GPU's name, or the processor's with the kernel's instruction set."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    status = next(s for s in backends.statuses() if s.name == "cpu")
    return f"{name} x{torch.get_num_threads()}, {status.detail}"


def save(name: str, lines: list[dict[str, Any]]) -> Path:
    """Append result lines to ``results/<name>.jsonl``."""
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line) + "\n")
    return path


def _changed() -> bool:
    """Uncommitted changes, other than results that were just appended."""
    return bool(
        _git("status", "--porcelain", "--", "..", ":!../benchmarks/results", ":!../README.md")
    )


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
