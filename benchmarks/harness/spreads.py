"""A series of times as a middle and a spread, ratios of two, and how such a figure is written."""

from __future__ import annotations

import statistics
from typing import Any

import torch

Figure = dict[str, Any]  # {median, p20, p80}, {ratio, p20, p80} or {ratio, low, high}


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


def spread(figure: Figure, digits: int = 1, unit: str = "", scale: float = 1.0) -> str:
    """``median [p20, p80]``; of ratios, ``ratio [p20, p80]`` or the 95% interval that they carry."""
    middle = figure["median"] if "median" in figure else figure["ratio"]
    low, high = ends(figure)
    shown = [f"{scale * value:.{digits}f}" for value in (middle, low, high)]
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]"


def ends(figure: Figure) -> tuple[float, float]:
    """The ends of a figure's spread."""
    if "p20" in figure:
        return figure["p20"], figure["p80"]
    return figure["low"], figure["high"]
