"""Interleaved timing and result lines, shared by all benchmarks."""

from __future__ import annotations

import datetime
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

import steerfast
from steerfast.ops import backends

RESULTS = Path(__file__).parent / "results"


Key = TypeVar("Key")
WARM = 2  # calls of ``single_calls`` that are not counted
Series = dict[str, list[float]]  # version -> microseconds per call, a figure a round


def in_turn(
    versions: Mapping[str, Callable[[], object]], *, rounds: int = 9, round_seconds: float = 0.05
) -> Series:
    """Microseconds per call of each version, round by round.

    A round calls each version in turn for about ``round_seconds``; the number of calls is fixed by a
    warm-up, so that every round of a version does the same work.
    """
    calls = {name: _calls_for(function, round_seconds) for name, function in versions.items()}
    times: Series = {name: [] for name in versions}
    for number in range(rounds):
        for name in rotated(list(versions), number):
            function = versions[name]
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append(1e6 * (time.perf_counter() - begin) / calls[name])
    return times


def interleave(
    versions: Mapping[str, Callable[[], object]], *, rounds: int = 9, round_seconds: float = 0.05
) -> dict[str, dict[str, float]]:
    """``in_turn``, summed up: {version: {median, p20, p80}} in microseconds per call."""
    series = in_turn(versions, rounds=rounds, round_seconds=round_seconds)
    return {name: summary(times) for name, times in series.items()}


def single_calls(
    versions: Mapping[Key, Callable[[], object]], calls: int
) -> dict[Key, list[float]]:
    """Microseconds of each call, one call of every version in turn: for ratios near 1, where the drift of a
    machine over a round would be greater than what is looked for. On a GPU every call is waited for.

    The order is drawn anew for each turn: what a call leaves in the caches would favour whoever always came next.
    """
    rng = random.Random(0)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[Key, list[float]] = {name: [] for name in versions}
    for function in [*versions.values()] * WARM:
        function()
    for _ in range(calls):
        for name in rng.sample(list(versions), len(versions)):
            wait()
            begin = time.perf_counter()
            versions[name]()
            wait()
            times[name].append(1e6 * (time.perf_counter() - begin))
    return times


def rotated(names: list[Key], number: int) -> list[Key]:
    """The order of round ``number``: another version comes first each time, so that none profits from its place."""
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _calls_for(function: Callable[[], object], seconds: float) -> int:
    function()
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() - begin < seconds / 2 or count < 2:
        function()
        count += 1
    return max(1, int(count * seconds / (time.perf_counter() - begin)))


def summary(series: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile; of a single figure, that."""
    if len(series) == 1:
        return dict.fromkeys(("median", "p20", "p80"), series[0])
    cuts = statistics.quantiles(series, n=10, method="inclusive")
    return {"median": statistics.median(series), "p20": cuts[1], "p80": cuts[7]}


def ratio_of(above: list[float], below: list[float]) -> dict[str, float]:
    """Ratio of two versions, taken round by round: its median, p20 and p80."""
    each = summary([a / b for a, b in zip(above, below, strict=True)])
    return {"ratio": each["median"], "p20": each["p20"], "p80": each["p80"]}


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
    """Uncommitted changes, other than results that were just appended and what is made from them."""
    made = (":!../benchmarks/results", ":!../README.md", ":!../docs/benchmarks*")
    return bool(_git("status", "--porcelain", "--", "..", *made))


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
