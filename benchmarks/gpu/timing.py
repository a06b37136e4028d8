"""Device time of short work on a GPU: graphs of many calls over rotating inputs, replayed in turn.

Without a GPU the same by the clock, on recorded graphs: for trying scripts out, not for figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from gpu.graphs import Graph, graph_of
from harness.spreads import summary
from harness.timing import Series, rotated

COLD_BYTES = 256 << 20  # inputs that rotate over this much leave no cache warm
MOST_SETS = 256
LEAST_NODES = 128  # calls of a graph: launching one takes as long as several short kernels
Calls = Sequence[Callable[[], object]]


def sets_needed(bytes_of_one: int) -> int:
    """How many input sets to rotate over, so that each call finds its own out of the cache (or, for
    small ones, as many as make the work of a call follow another's)."""
    return max(2, min(MOST_SETS, COLD_BYTES // max(bytes_of_one, 1) + 1))


def cache_bytes() -> int:
    """Of the GPU's second-level cache."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def where(bytes_of_all: int) -> str:
    """Where so many bytes that are used over and over lie: a figure says so, since it makes the difference."""
    return "in cache" if bytes_of_all <= cache_bytes() else "in memory"


def in_turn(
    versions: Mapping[str, Calls],
    *,
    rounds: int = 15,
    round_ms: float = 20.0,
    nodes: int = LEAST_NODES,
) -> Series:
    """Microseconds of device time per call of each version, round by round; a version is a list of calls, one
    per input set, repeated in its graph until there are ``nodes``. A round replays every version's graph in turn, starting with
    another one each time."""
    times_over = {name: -(-nodes // len(calls)) for name, calls in versions.items()}
    graphs = {name: graph_of(calls, times_over[name]) for name, calls in versions.items()}
    count = {name: times_over[name] * len(calls) for name, calls in versions.items()}
    replays = {}
    for name, graph in graphs.items():
        _timed(graph, 1)
        once = _timed(graph, 1)
        replays[name] = max(1, int(round_ms / max(once, 1e-3)))
    times: Series = {name: [] for name in graphs}
    for number in range(rounds):
        for name in rotated(list(graphs), number):
            milliseconds = _timed(graphs[name], replays[name])
            times[name].append(1e3 * milliseconds / (replays[name] * count[name]))
    return times


def interleave(versions: Mapping[str, Calls], *, rounds: int = 15) -> dict[str, dict[str, float]]:
    """``in_turn``, summed up: {version: {median, p20, p80}}."""
    return {name: summary(series) for name, series in in_turn(versions, rounds=rounds).items()}


def _timed(graph: Graph, replays: int) -> float:
    """Milliseconds."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(replays):
            graph.replay()
        return max(1e3 * (time.perf_counter() - start), 1e-3)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def copies(count: int, device: str, sets: int = 1) -> list[Callable[[], object]]:
    """Copies that read and write ``count`` bytes together, each by a kernel: a memcpy node of a graph starts later than one."""
    made = []
    for _ in range(sets):
        source = torch.zeros(max(count // 8, 1), device=device)  # float32: 4 read and 4 written
        target = torch.empty_like(source)
        if device == "cpu":
            made.append(lambda source=source, target=target: target.copy_(source))
        else:
            made.append(lambda source=source, target=target: torch.add(source, 0, out=target))
    return made


def copy_bandwidth(count: int = 1 << 30) -> float:
    """Bytes per second of a large device-to-device copy, read and written bytes counted: the ceiling that
    percentages refer to."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = in_turn({"copy": [lambda: target.copy_(source)]}, nodes=1)
    return 2 * source.numel() / (summary(times["copy"])["median"] * 1e-6)


def nothing() -> Callable[[], object]:
    """A kernel that does nothing."""
    if torch.cuda.is_available():
        return lambda: torch.cuda._sleep(0)
    least = torch.zeros(1)
    return lambda: least.add_(0)


def launch_floor() -> float:
    """Microseconds per launch of a kernel that does nothing, one after the other in a graph."""
    return interleave({"nothing": [nothing()]})["nothing"]["median"]
