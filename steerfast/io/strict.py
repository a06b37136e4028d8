"""JSON from others, read strictly: whatever is wrong with it is a ValueError that says what, and where.

Python's own reader takes a key twice (the last one wins), NaN, integers of any length, and ends in another error where a
text is nested deeply. A value of another type than was asked for is refused here and never converted: ``"1"`` is no
number, ``true`` no integer, ``1.9`` no count.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 2**63 - 1
DEEPEST = 64  # levels of objects and lists in each other
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")


def parse(text: str | bytes, what: str) -> Any:
    """The value of a JSON text. what: what it should be, as errors name it: ``a plan``.

    ValueError for text that is not JSON or not UTF-8, that is nested in more than ``DEEPEST`` levels, has a key twice in
    one object, or a number that is no 64-bit integer and no finite float64.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        # Not left to the interpreter's limit: what is read near it cannot be shown in an error any more.
        _check_depth(value)
        return value
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply to be one") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is JSON text in UTF-8, but this is not: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is JSON, but this text is not: {error}") from error
    except ValueError as error:  # of the four functions below
        raise ValueError(f"{what} {error}") from None


def read(path: str | Path, what: str) -> Any:
    """``parse`` of a file; the error names it. FileNotFoundError where there is none."""
    return parse(Path(path).read_bytes(), f"{path} should be {what}, which")


def check_values(value: object, what: str) -> None:
    """ValueError for integers beyond 64 bits anywhere in what another reader has read."""
    for level in _levels(value):
        for one in level:
            if type(one) is int and not -LARGEST - 1 <= one <= LARGEST:
                raise ValueError(f"{what} holds an integer that 64 bits do not")


def _check_depth(value: object) -> None:
    for depth, level in enumerate(_levels(value)):
        if depth >= DEEPEST and any(isinstance(one, (dict, list)) for one in level):
            raise RecursionError


def _levels(value: object) -> Iterator[list[Any]]:
    """The value, what is in it, what is in that, ...; level by level, so that no depth is too much."""
    level = [value]
    while level:
        yield level
        inner = (
            one.values() if isinstance(one, dict) else one
            for one in level
            if isinstance(one, (dict, list))
        )
        level = [each for part in inner for each in part]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = min(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"has {_short(twice)} twice in one object; which one is meant?")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -LARGEST - 1 <= int(text) <= LARGEST:
        raise ValueError(f"holds the integer {_short(text)}, which 64 bits do not")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds the number {_short(text)}, which is beyond float64")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is no number of JSON")


def as_object(value: object, what: str) -> dict[str, Any]:
    """The value if it is a JSON object, else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is an object, got {_short(value)}")
    return value


def as_list(value: object, what: str) -> list[Any]:
    """The value if it is a list, else ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is a list, got {_short(value)}")
    return value


def as_text(value: object, what: str) -> str:
    """The value if it is text, else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is text, got {_short(value)}")
    return value


def as_whole(value: object, what: str, least: int = 0) -> int:
    """The value if it is an integer from ``least`` on, else ValueError."""
    if type(value) is not int or value < least:
        raise ValueError(f"{what} is a whole number from {least} on, got {_short(value)}")
    return value


def as_number(value: object, what: str) -> float:
    """The value if it is a finite number, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{what} is a finite number, got {_short(value)}")
    return float(value)


def as_layer(key: str, what: str) -> int:
    """The layer that a key of an object names, written as ``0``, ``12``; ValueError for ``01``, `` 1``, ``1_0``."""
    if not _WHOLE.fullmatch(key):
        raise ValueError(f"{what} names layer {_short(key)}; layers are written 0, 1, 2, ...")
    return int(key)


def no_other_keys(what: str, data: dict[str, Any], known: set[str]) -> None:
    """ValueError for a key that is not known: a misspelt one must not be ignored."""
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(
            f"{what} has unknown keys {_short(unknown)}; known: {', '.join(sorted(known))}"
        )


def _short(value: object) -> str:
    """For a message: what was sent may be long."""
    text = repr(value) if not isinstance(value, str) or len(value) < 200 else repr(value[:200])
    return text if len(text) <= 80 else f"{text[:80]}..."
