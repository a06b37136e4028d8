"""Facts that go into a file, in a form that every reader of JSON takes back."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from steerfast.io.strict import LARGEST

DEEPEST = 32  # of what is nested; readers refuse deep nesting


def facts_to_json(facts: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """``facts`` as JSON has them: text, booleans, None, 64-bit integers, finite numbers, lists, objects with text as keys.

    Numbers of numpy and tensors, arrays, tuples and paths are converted; integers as keys become text. ValueError, with the
    place, for what JSON does not hold: NaN, infinity, greater integers, other objects, two keys with the same text.
    """
    return _object(facts, what, 0)


def _object(facts: Mapping[Any, Any], what: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for given, value in facts.items():
        if isinstance(given, bool) or not isinstance(given, (str, numbers.Integral)):
            raise ValueError(f"{what} has the key {given!r:.80}; a key is text, so write str(key)")
        key = str(given)
        if key in found:
            raise ValueError(f"{what} has {key[:80]!r} twice, as a number and as text; rename one")
        found[key] = _value(value, f"{what}[{key[:80]!r}]", depth + 1)
    return found


def _value(value: Any, what: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"{what} is nested more than {DEEPEST} deep; flatten it")
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool)):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, numbers.Integral):
        whole = operator.index(value)
        if not -LARGEST - 1 <= whole <= LARGEST:
            raise ValueError(f"{what} is an integer that 64 bits do not hold; write str(number)")
        return whole
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(
                f"{what} is {number}, which is no number of JSON; leave it out, or None"
            )
        return number
    if isinstance(value, Mapping):
        return _object(value, what, depth)
    if isinstance(value, (list, tuple)):
        return [_value(one, f"{what}[{at}]", depth + 1) for at, one in enumerate(value)]
    raise ValueError(
        f"{what} is {type(value).__name__} {value!r:.80}; a file holds text, numbers, lists and dicts of them: "
        "convert it, str(value) perhaps"
    )
