"""Modules with another ``forward`` for a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def stood_in_for(parts: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Each module runs what stands in for it; all is as it was afterwards, also what a library had put there."""
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for part, forward in parts:
            kept.append((part, part.__dict__.get("forward")))
            part.__dict__["forward"] = forward
        yield
    finally:
        for part, before in kept:
            part.__dict__.pop("forward", None)
            if before is not None:
                part.__dict__["forward"] = before
