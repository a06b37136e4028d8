"""safetensors by ranges: the header first, then only what is asked for."""

from __future__ import annotations

import struct
from typing import Any

from torch import Tensor

from steerfast.io.byte_ranges import ByteRanges, Closing
from steerfast.io.formats import tensor_file
from steerfast.io.formats.tensor_file import DTYPES, Stored, check_stored
from steerfast.io.strict import as_list, as_object, as_text, as_whole, parse

LARGEST_HEADER = 2**23  # bytes; that of an SAE has hundreds


class RangedSafetensors(Closing):
    """The tensors of a file; ValueError for a header that is none, or that lies."""

    def __init__(self, ranges: ByteRanges) -> None:
        self.ranges = ranges
        length = struct.unpack("<Q", ranges.read(0, 8))[0]
        if length > min(LARGEST_HEADER, ranges.size - 8):
            raise ValueError(
                f"it is no safetensors file: its header is said to have {length} bytes"
            )
        header = as_object(
            parse(ranges.read(8, length), "a safetensors header"), "a safetensors header"
        )
        self.metadata: dict[str, Any] = as_object(header.pop("__metadata__", {}), "'__metadata__'")
        self.stored: dict[str, Stored] = {}
        self.others: list[str] = []  # of types that are no real numbers
        for name, entry in header.items():
            self._add(name, as_object(entry, f"tensor {name[:80]!r}"), 8 + length)

    def _add(self, name: str, entry: dict[str, Any], begin: int) -> None:
        what = f"tensor {name[:80]!r}"
        shape = tuple(
            as_whole(one, f"the shape of {what}")
            for one in as_list(entry.get("shape"), f"the shape of {what}")
        )
        offsets = as_list(entry.get("data_offsets"), f"the offsets of {what}")
        if len(offsets) != 2:
            raise ValueError(f"{what} has {len(offsets)} offsets, not first and last")
        first, last = (as_whole(one, f"an offset of {what}") for one in offsets)
        dtype = as_text(entry.get("dtype"), f"the type of {what}")
        if dtype not in DTYPES:
            self.others.append(name)
            return
        stored = Stored(shape, dtype, begin + first)
        check_stored(stored, last - first, self.ranges.size, name)
        self.stored[name] = stored

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.stored.items()}

    def take(self, name: str, axis: int, index: int) -> Tensor:
        return tensor_file.take(self.ranges, self.stored[name], axis, index)

    def whole(self, name: str) -> Tensor:
        return tensor_file.whole(self.ranges, self.stored[name])

    def close(self) -> None:
        self.ranges.close()
