"""GGUF files read once: transformers reads one anew for the tokenizer, the configuration and the weights.

For SmolLM2 that is four fifths of the time to load it: 98,000 strings of its vocabulary, each time through slices of a
memory map, and a table of tensor names made 397 times. What is read is the same, to the bit.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_replacing = threading.RLock()


@contextmanager
def read_once() -> Iterator[None]:
    """While open, ``gguf.GGUFReader`` and ``gguf.get_tensor_name_map`` answer the same question from memory."""
    import gguf

    with _replacing:
        reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = functools.lru_cache(maxsize=None)(_quick(reader))
        gguf.get_tensor_name_map = functools.lru_cache(maxsize=None)(names)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def _quick(reader: Any) -> Any:
    """A GGUFReader over a plain array: each slice of a ``numpy.memmap`` is a Python call of its own."""
    import numpy

    class Reader(reader):  # type: ignore[misc]
        data: Any

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "data" and isinstance(value, numpy.memmap):
                value = value.view(numpy.ndarray)  # over the same map, which it keeps open
            super().__setattr__(name, value)

    return Reader
