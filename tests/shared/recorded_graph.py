"""What a CUDA graph is, on the CPU: the operators of a call, run again in the same memory and without the Python between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    """``RecordedGraph.of(call)`` runs it and keeps its operators and tensors; ``replay()`` runs them again. ``output`` is
    what the call returned, which every replay overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.output: Any = None

    @classmethod
    def of(cls, call: Callable[[], Any]) -> RecordedGraph:
        graph = cls()
        here = torch.cuda
        with (
            patch.object(here, "is_initialized", lambda: True),
            patch.object(here, "is_current_stream_capturing", lambda: True),
            graph,
        ):
            graph.output = call()
        return graph

    @classmethod
    def is_infra_mode(cls) -> bool:
        """So that compiled code runs under it, as under a capture."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, _tensors(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, before in self._calls:
            given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            for tensor, now in zip(before, _tensors(func(*args, **kwargs)), strict=True):
                if (
                    tensor.untyped_storage().data_ptr() not in given
                ):  # else it has been written, or is a view
                    tensor.copy_(now)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
