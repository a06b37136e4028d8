"""What an op costs by its size, fitted to measured times, and what follows for models that do not fit here.

    t(N, D) = call + row N + byte (4 N D s)      call, row, byte >= 0

with s bytes an element: a call's own cost, that of a row whatever its width, and that of a byte.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from harness.spreads import summary
from harness.timing import Series

FITTED_TO = 4096  # greatest D that the model is fitted to; wider ones show whether it holds


class Llama(NamedTuple):
    """The shape of a Llama; kv_heads_share: the width of keys over that of queries."""

    name: str
    hidden: int
    layers: int
    inner: int
    kv_heads_share: float
    vocabulary: int

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden**2 * (1 + self.kv_heads_share)
        layer = attention + 3 * self.hidden * self.inner
        return int(self.layers * layer + 2 * self.vocabulary * self.hidden)


LLAMAS = (
    Llama("Llama-2-7B", 4096, 32, 11008, 1.0, 32000),
    Llama("Llama-2-13B", 5120, 40, 13824, 1.0, 32000),
    Llama("Llama-2-70B", 8192, 80, 28672, 1 / 8, 32000),
)
# Bytes per second, of its data sheet: assumed, not measured.
ON_PAPER = ("H100 SXM, on paper", 3.35e12)
BATCHES = (1, 64)
RANKS = (1, 8)


def fit_line(points: dict[float, list[float]]) -> dict[str, Any]:
    """Least squares a + b x through medians; the slope of every round (or of ten groups of single calls) gives
    its spread. r2: the share of the medians' variance that the line explains."""
    values = np.array(list(points))
    medians = np.array([statistics.median(series) for series in points.values()])
    slope, start = np.polyfit(values, medians, 1)
    rest = medians - (start + slope * values)
    spread = medians - medians.mean()
    total = float(spread @ spread)
    groups = np.array([_groups(series) for series in points.values()])
    slopes = [float(np.polyfit(values, group, 1)[0]) for group in groups.T]
    return {
        "at_zero": float(start),
        "slope": {**summary(slopes), "median": float(slope)},
        "r2": 1 - float(rest @ rest) / total if total else 1.0,
    }


def _groups(series: list[float]) -> list[float]:
    """Rounds as they are; many single calls as the medians of ten groups of neighbours."""
    if len(series) < 50:
        return series
    return [float(np.median(part)) for part in np.array_split(series, 10)]


def fit_cost(points: dict[tuple[int, int], float], itemsize: int) -> tuple[float, float, float]:
    """(call, row, byte) in microseconds, from {(N, D): microseconds}; relative errors are what is least squared,
    since times span orders of magnitude, and no coefficient is negative."""
    rows = np.array([[1.0, n, 4.0 * n * d * itemsize] for n, d in points])
    times = np.array(list(points.values()))
    columns = [0, 1, 2]
    while True:
        weighted = rows[:, columns] / times[:, None]
        found, *_ = np.linalg.lstsq(weighted, np.ones(len(times)), rcond=None)
        if (found >= 0).all():
            break
        columns.pop(int(found.argmin()))
    call, row, byte = (
        dict(zip(columns, map(float, found), strict=True)).get(i, 0.0) for i in range(3)
    )
    return call, row, byte


def cost(model: tuple[float, float, float], rows: int, hidden: int, itemsize: int) -> float:
    """Microseconds of one op."""
    call, row, byte = model
    return call + row * rows + byte * 4 * rows * hidden * itemsize


def line(
    times: dict[str, Series], fixed: tuple[int, int], itemsize: int, memory: float
) -> dict[str, Any]:
    """The result line: models of the steered and the unsteered op, how they do on wider rows, predictions.

    fixed: N and D of the series in which the other one varies.
    """
    rows, width = fixed
    models, checks = {}, []
    for name, suffix in (("steered", ""), ("unsteered", ", unsteered")):
        known = {(n, width): us for n, us in _medians(times[f"rows N{suffix}"])}
        known |= {(rows, d): us for d, us in _medians(times[f"hidden size D{suffix}"])}
        narrow = {at: us for at, us in known.items() if at[1] <= FITTED_TO}
        models[name] = fit_cost(narrow, itemsize)
        checks += [
            {"op": name, "N": n, "D": d, "us": us, "predicted": cost(models[name], n, d, itemsize)}
            for (n, d), us in known.items()
            if d > FITTED_TO
        ]
    return {
        "bench": "scale model",
        "models": models,
        "checks": checks,
        "memory": memory,
        "predictions": predictions(models, itemsize, memory) + on_paper(itemsize),
    }


def _medians(series: Series) -> list[tuple[int, float]]:
    return [
        (int(value), statistics.median(times))
        for value, times in series.items()
        if "again" not in value
    ]


def predictions(
    models: dict[str, tuple[float, float, float]], itemsize: int, memory: float
) -> list[dict[str, Any]]:
    """What steering every layer adds to a decode step here: (steered - unsteered) x layers, next to the time that
    reading a rank's share of the weights takes, which no step undercuts."""

    def extra(llama: Llama, batch: int) -> float:
        steered, unsteered = (
            cost(models[name], batch, llama.hidden, itemsize) for name in ("steered", "unsteered")
        )
        return max(steered - unsteered, 0.0)

    return _predicted("this machine", extra, itemsize, memory)


def on_paper(itemsize: int) -> list[dict[str, Any]]:
    """The same for a device known from its data sheet only. A launch is paid with or without steering; what is added
    is the delta of each row, 4 D bytes, if no two rows share one and none is in cache."""
    device, memory = ON_PAPER
    return _predicted(
        device, lambda llama, batch: 1e6 * 4 * llama.hidden * batch / memory, itemsize, memory
    )


def _predicted(
    device: str, extra: Callable[[Llama, int], float], itemsize: int, memory: float
) -> list[dict[str, Any]]:
    """For each shape, number of ranks and batch; extra: microseconds that steering adds to one op."""
    found = []
    for llama, ranks, batch in itertools.product(LLAMAS, RANKS, BATCHES):
        floor = 1e6 * llama.parameters * itemsize / ranks / memory
        added = extra(llama, batch) * llama.layers
        about = {"device": device, "model": llama.name, "ranks": ranks, "batch": batch}
        found.append(about | {"added_us": added, "weights_us": floor, "share": added / floor})
    return found
