"""Checks of the fields of terms, gates, schedules and conditions."""

from __future__ import annotations

import math
from typing import get_args


def choice(what: str, value: object, allowed: object) -> None:
    """ValueError unless ``value`` is one of a Literal's."""
    known = get_args(allowed)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def number(what: str, value: object) -> float:
    """A finite float, with one zero; TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; it must be finite")
    return float(value) + 0.0
