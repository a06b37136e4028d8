"""Single rows, columns and elements of the tensors of a file, without reading the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steerfast.io.byte_ranges import ByteRanges, check_range

MOST_WHOLE = 2**28  # bytes of a tensor that is read whole
DTYPES = {
    "F64": (torch.float64, 8),
    "F32": (torch.float32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
}


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies: row-major values of a type of ``DTYPES`` from byte ``at`` on. transposed: stored the other
    way round than its shape says (Fortran's order)."""

    shape: tuple[int, ...]
    dtype: str
    at: int
    transposed: bool = False


class TensorFile(Protocol):
    """What an SAE is read from: names, shapes, and one slice or element at a time, as float32."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def take(self, name: str, axis: int, index: int) -> Tensor: ...

    def whole(self, name: str) -> Tensor: ...


def take(ranges: ByteRanges, stored: Stored, axis: int, index: int) -> Tensor:
    """Row (axis 0) or column (axis 1) of a matrix, or the element of a vector, as float32. A column is read value by value."""
    if not 0 <= index < stored.shape[axis]:
        raise ValueError(f"there is no {index}; there are 0 to {stored.shape[axis] - 1}")
    torch_dtype, size = DTYPES[stored.dtype]
    if len(stored.shape) == 1:
        return _values(ranges.read(stored.at + index * size, size), torch_dtype)
    lines, length = stored.shape[::-1] if stored.transposed else stored.shape
    if (axis == 0) != stored.transposed:
        return _values(ranges.read(stored.at + index * length * size, length * size), torch_dtype)
    places = [(stored.at + (line * length + index) * size, size) for line in range(lines)]
    return _values(b"".join(ranges.read_each(places)), torch_dtype)


def whole(ranges: ByteRanges, stored: Stored) -> Tensor:
    """All of a small tensor, as float32, in its shape."""
    torch_dtype, size = DTYPES[stored.dtype]
    count = math.prod(stored.shape)
    if count * size > MOST_WHOLE:
        raise ValueError(f"it has {count * size} bytes; read whole are at most {MOST_WHOLE}")
    values = _values(ranges.read(stored.at, count * size), torch_dtype)
    return (
        values.reshape(stored.shape[::-1]).T if stored.transposed else values.reshape(stored.shape)
    )


def check_stored(stored: Stored, bytes_said: int, size: int, name: str) -> None:
    """ValueError for a tensor whose shape, bytes and place do not fit each other or the file."""
    wanted = math.prod(stored.shape) * DTYPES[stored.dtype][1]
    if wanted != bytes_said:
        raise ValueError(
            f"tensor {name[:80]!r} of shape {list(stored.shape)} takes {wanted} bytes, but {bytes_said} are its"
        )
    check_range(stored.at, bytes_said, size)


def _values(data: bytes, dtype: torch.dtype) -> Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=dtype).to(torch.float32) if data else torch.zeros(0)
    )
