"""Checks of the fields of terms, gates, schedules and conditions."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor


def choice(what: str, value: object, allowed: object) -> None:
    """ValueError unless ``value`` is one of a Literal's."""
    known = get_args(allowed)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def number(what: str, value: object) -> float:
    """A finite float, with one zero, from any real number: numpy's and a tensor of no dimensions too.

    TypeError for what is no number (a boolean is none), ValueError for one that is not finite.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and value.dtype is not torch.bool:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} is a number, got {value!r}")
    try:
        known = float(value)
    except OverflowError:
        raise ValueError(f"{what} is beyond float64; it must be finite") from None
    if not math.isfinite(known):
        raise ValueError(f"{what} is {known}; it must be finite")
    return known + 0.0


def whole(what: str, value: object) -> int:
    """An int from any integer: numpy's and a tensor of no dimensions too. TypeError for anything else, booleans too."""
    kind = value.dtype if isinstance(value, Tensor) else None
    if not isinstance(value, bool) and kind is not torch.bool:
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{what} is an integer, got {value!r}")


def wholes(what: str, values: object) -> tuple[int, ...]:
    """Integers from one of them, or from any iterable: a list, a range, a numpy array, a tensor."""
    if (
        isinstance(values, str)
        or not isinstance(values, Iterable)
        or getattr(values, "ndim", 1) == 0
    ):
        return (whole(what, values),)
    return tuple(whole(what, value) for value in values)
