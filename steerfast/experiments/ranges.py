"""What the numbers of a configuration may be: a preset with a digit too many is refused before it runs for a year."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple


class Range(NamedTuple):
    """low <= value <= high, of every number in a field, however it is nested."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}".replace(",", "_")


QUESTIONS = Range(1, 1_000_000)
TOKENS = Range(1, 1_000_000_000)
LAYER = Range(0, 9_999)
SEED = Range(0, 2**63 - 1)
SHARE = Range(0, 1)
DOSE = Range(1e-9, 1e6)  # greater than 0: signs are the study's own
SIGNED_DOSE = Range(-1e6, 1e6)
MOST_POINTS = 10_000  # of a grid


def check_ranges(config: Any, ranges: Mapping[str, Range]) -> None:
    """ValueError naming the field, the number and the range; and for a list that should not be empty."""
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{name} is empty; give at least one")
        for number in _numbers(value):
            if not allowed.low <= number <= allowed.high:
                raise ValueError(f"{name} is {number:g}, but goes {allowed}")


def check_names(what: str, names: tuple[str, ...]) -> None:
    """ValueError for no names, one twice, or one that is no name of a file: results are kept under them."""
    if not names:
        raise ValueError(f"{what} is empty; give at least one")
    for name in names:
        if PurePath(name).name != name or name in ("", ".", ".."):
            raise ValueError(
                f"{what} has {name!r:.80}, which is no name of a file; leave slashes out"
            )
        if names.count(name) > 1:
            raise ValueError(f"{what} has {name!r} twice")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    else:
        yield value
