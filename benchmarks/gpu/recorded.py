"""A graph for machines without a GPU: the operators that a call runs, recorded once and run again on the same tensors.

What a CUDA graph forgets, this forgets too: no Python runs in a replay, only operators, and each writes where it wrote
before. What a capture refuses, this refuses: an operator that hands a value of a tensor to Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS_A_VALUE = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
)


class Recorded(TorchDispatchMode):
    """Under it operators run and are kept; ``replay`` runs them again, in the same order, into the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @classmethod
    def is_infra_mode(cls) -> bool:
        """So that compiled code runs under it, as it does under a capture."""
        return True

    def __len__(self) -> int:
        return len(self._calls)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name.startswith(READS_A_VALUE):
            raise RuntimeError(
                f"{func} reads a tensor's value, which a capture does not allow: a replay would not read it again"
            )
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._schema.is_mutable or not _views(out, (args, kwargs)):
            self._calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()  # nothing of a graph is differentiated
    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            for kept, made in zip(_tensors(out), _tensors(again), strict=True):
                if made.data_ptr() != kept.data_ptr():  # else the operator wrote in place
                    kept.copy_(made)


def capture(call: Callable[[], Any]) -> tuple[Recorded, Any]:
    """The call as a recorded graph, and what it returned, which every replay writes anew."""
    graph = Recorded()
    with _capturing(), graph:
        result = call()
    return graph, result


@contextmanager
def _capturing() -> Iterator[None]:
    """Code that asks whether a stream is being captured is told so, as it is on a GPU."""
    with (
        patch.object(torch.cuda, "is_initialized", lambda: True),
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
    ):
        yield


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _views(out: Any, given: Any) -> bool:
    """All results lie in the memory of arguments: nothing has to be computed again."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(given)}
    made = _tensors(out)
    return bool(made) and all(tensor.untyped_storage().data_ptr() in memory for tensor in made)
