"""A recorded graph (``gpu.recorded`` of the benchmarks) with the face of ``torch.cuda.CUDAGraph`` as the tests use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu import recorded


class RecordedGraph:
    """``RecordedGraph.of(call)`` runs it and keeps its operators and tensors; ``replay()`` runs them again. ``output`` is
    what the call returned, which every replay overwrites."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._graph, self.output = recorded.capture(call)

    of = classmethod(lambda cls, call: cls(call))

    def replay(self) -> None:
        self._graph.replay()
