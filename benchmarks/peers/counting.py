"""What a forward costs without a clock: kernels, bytes of their tensors, and waits of the host for the device.

A kernel is an aten operation that is no view and no allocation, or one op of a library, as the dispatcher sees them:
each is at least one launch on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Allocate or describe; launch nothing.
FREE = frozenset(
    {
        "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
        "_unsafe_view", "lift_fresh", "set_", "resize_", "is_same_size", "sym_size", "sym_stride",
        "sym_numel", "sym_storage_offset", "device", "is_pinned", "_local_scalar_dense",
        "dim", "size", "stride", "is_contiguous", "storage_offset", "numel",
    }
)  # fmt: skip
# Bring a number or a shape to the host.
SYNCS = frozenset(
    {
        "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item",
        "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave",
    }
)  # fmt: skip
# Arguments from which an op picks rows. One row counts, as one vector does that all tokens share: what a plan with one
# phase for all rows reads. A whole bank would count what no kernel touches.
TABLES = frozenset({"records", "reads", "bank"})
GATHERS = frozenset({"index", "index_select", "gather", "embedding"})  # read as much as they make
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


@dataclass
class Counts:
    """kernels, bytes (logical sizes of a kernel's tensor arguments and outputs), syncs, and names: kernels by op."""

    kernels: int = 0
    bytes: int = 0
    syncs: int = 0
    names: Counter[str] = field(default_factory=Counter)


@contextmanager
def count() -> Iterator[Counts]:
    """Counts what runs inside. An op that is made of others is counted as those."""
    counts = Counts()
    with _Counting(counts):
        yield counts


class _Counting(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode composite ops arrive whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        self._see(func, args, kwargs, result)
        return result

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        counts, name = self.counts, func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in SYNCS or _crosses(given, made):
            counts.syncs += 1
        elif name in INDEXED:  # by a mask: its true elements are counted first
            counts.syncs += any(one.dtype in (torch.bool, torch.uint8) for one in _indices(args))
        if name in FREE or _is_view(func):
            return
        counts.kernels += 1
        counts.names[f"{func.namespace}::{name}"] += 1
        counts.bytes += sum(one.nbytes for one in given + made) - _unread(func, args, made)


def _unread(func: Any, args: tuple[Any, ...], made: list[Tensor]) -> int:
    """Bytes of arguments that an op picks from and does not read."""
    if func.overloadpacket.__name__ in GATHERS:
        return max(0, args[0].nbytes - made[0].nbytes)
    named = zip(func._schema.arguments, args, strict=False)
    tables = [one for argument, one in named if argument.name in TABLES]
    return sum(one.nbytes - one[:1].nbytes for one in tables if isinstance(one, Tensor))


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _crosses(given: list[Tensor], made: list[Tensor]) -> bool:
    """A copy between host and device, either way; the way in waits too, where memory is not pinned."""
    # A 0-dimensional CPU tensor is passed to a kernel as a number.
    kinds = {one.device.type == "cpu" for one in given + made if one.ndim}
    return len(kinds) == 2


def _indices(args: tuple[Any, ...]) -> list[Tensor]:
    return [one for one in (args[1] if len(args) > 1 else ()) if isinstance(one, Tensor)]
