"""Calls captured once and replayed: as a CUDA graph, or without a GPU as its stand-in (``recorded``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gpu import recorded

Graph = Any  # torch.cuda.CUDAGraph or recorded.Recorded: what has replay()


def captured(
    call: Callable[[], Any], *, before: Callable[[], None] = lambda: None, warm: int = 3
) -> tuple[Graph, Any]:
    """The call as a graph, and the tensors that each replay writes; ``before`` runs ahead of every call, outside of the graph.

    Warmed up first, on another stream: kernels are loaded and caches filled by then.
    """
    if not torch.cuda.is_available():
        for _ in range(warm):
            before()
            call()
        before()
        return recorded.capture(call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            before()
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    before()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def graph_of(calls: Sequence[Callable[[], object]], times: int = 1) -> Graph:
    """All calls, so many times over, in one graph. What one returns lives until as many others have been called as there are:
    no call finds the memory that it writes to in a cache because the one before has just given it back."""

    def all_of_them() -> None:
        held: deque[object] = deque(maxlen=max(1, len(calls) - 1))
        for call in [*calls] * times:
            held.append(call())

    return captured(all_of_them, warm=1)[0]
