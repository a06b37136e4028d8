"""Versions that take turns in one process: rounds of many calls, or single calls."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from harness.spreads import summary

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
