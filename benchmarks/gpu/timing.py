"""Device time of short work on a GPU: graphs of many calls over rotating inputs, replayed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from harness.spreads import summary
from harness.timing import Series, rotated

COLD_BYTES = 256 << 20  # inputs that rotate over this much leave no cache warm
MOST_SETS = 256


def sets_needed(bytes_of_one: int) -> int:
    """How many input sets to rotate over, so that each call finds its own out of the cache (or, for
    small ones, as many as make the work of a call follow another's)."""
    return max(2, min(MOST_SETS, COLD_BYTES // max(bytes_of_one, 1) + 1))


def graph_of(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """All calls in one graph, after a warm-up outside of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def in_turn(
    versions: Mapping[str, Sequence[Callable[[], object]]],
    *,
    rounds: int = 15,
    round_ms: float = 20.0,
) -> Series:
    """Microseconds of device time per call of each version, round by round; a version is a list of calls, one
    per input set. A round replays every version's graph in turn, starting with another one each time."""
    graphs = {name: graph_of(calls) for name, calls in versions.items()}
    replays = {}
    for name, graph in graphs.items():
        _timed(graph, 1)
        once = _timed(graph, 1)
        replays[name] = max(1, int(round_ms / max(once, 1e-3)))
    times: Series = {name: [] for name in graphs}
    for number in range(rounds):
        for name in rotated(list(graphs), number):
            milliseconds = _timed(graphs[name], replays[name])
            times[name].append(1e3 * milliseconds / (replays[name] * len(versions[name])))
    return times


def interleave(
    versions: Mapping[str, Sequence[Callable[[], object]]], *, rounds: int = 15
) -> dict[str, dict[str, float]]:
    """``in_turn``, summed up: {version: {median, p20, p80}}."""
    return {name: summary(series) for name, series in in_turn(versions, rounds=rounds).items()}


def _timed(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def copy_bandwidth() -> float:
    """Bytes per second of a large device-to-device copy, read and written bytes counted: the ceiling that
    percentages refer to."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    time = interleave({"copy": [lambda: target.copy_(source)]})["copy"]["median"]
    return 2 * source.numel() / (time * 1e-6)


def launch_floor() -> float:
    """Microseconds per launch of a kernel that does nothing, one after the other in a graph."""
    nothing = [lambda: torch.cuda._sleep(0)] * 64
    return interleave({"nothing": nothing})["nothing"]["median"]
