"""``.npz`` by ranges: an array that is not compressed lies in the file as it is; no object is ever unpickled."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfast.io.byte_ranges import ByteRanges, Closing, LocalRanges, RangedFile
from steerfast.io.formats import tensor_file
from steerfast.io.formats.tensor_file import MOST_WHOLE, Stored

_HEADER = 4096  # bytes in which the header of an array ends
_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}


class ArrayFile(Closing):
    """The arrays of an ``.npz``. ValueError for what is no zip archive of arrays, and for arrays beyond a size."""

    def __init__(self, ranges: ByteRanges) -> None:
        self.ranges = ranges
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(RangedFile(ranges), 2**16))
        except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error) as error:
            raise ValueError(f"it is no .npz file: {error}") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in self._entries:
                raise ValueError(f"it has the array {name[:80]!r} twice")
            self._entries[name] = entry
        self._stored: dict[str, Stored] = {}

    @classmethod
    def of(cls, path: Path) -> ArrayFile:
        return cls(LocalRanges(path))

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its arrays of real numbers; others count as absent."""
        found = {}
        for name, entry in self._entries.items():
            shape, _, dtype, _ = read_header(self._beginning(entry))
            if dtype.kind == "f":
                found[name] = shape
        return found

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """One array, whole."""
        entry = self._entries[name]
        shape, fortran, dtype, begin = read_header(self._beginning(entry))
        count = math.prod(shape)
        if entry.file_size > MOST_WHOLE + _HEADER or count * dtype.itemsize > MOST_WHOLE:
            raise ValueError(
                f"array {name[:80]!r} unpacks to {entry.file_size} bytes; read are at most {MOST_WHOLE}"
            )
        if begin + count * dtype.itemsize != entry.file_size:
            raise ValueError(
                f"array {name[:80]!r} of shape {list(shape)} does not fill its {entry.file_size} bytes"
            )
        data = self._data(entry)[begin:]
        values = np.frombuffer(data, dtype, count)
        return values.reshape(shape, order="F" if fortran else "C")

    def whole(self, name: str) -> Any:
        return self.array(name)

    def text(self, name: str) -> str:
        """An array that is one text."""
        array = self.array(name)
        if array.dtype.kind != "U" or array.ndim:
            raise ValueError(
                f"array {name!r} is {array.dtype} of shape {list(array.shape)}; it is one text"
            )
        order = "be" if array.dtype.byteorder == ">" else "le"
        # Not by numpy, which makes text of what is no letter of Unicode.
        return array.tobytes().decode(f"utf-32-{order}").rstrip("\0")

    def _beginning(self, entry: zipfile.ZipInfo) -> bytes:
        return self._data(entry, _HEADER)

    def _data(self, entry: zipfile.ZipInfo, most: int = -1) -> bytes:
        try:
            with self._zip.open(entry) as file:
                return file.read(most)
        except (
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            EOFError,
            OSError,
        ) as error:
            raise ValueError(
                f"array {entry.filename[:80]!r} cannot be unpacked: {error}"
            ) from error

    def close(self) -> None:
        self._zip.close()
        self.ranges.close()


class RangedArrays(ArrayFile):
    """The same, slice by slice, for an archive that is not compressed (``numpy.savez``)."""

    def take(self, name: str, axis: int, index: int) -> Tensor:
        return tensor_file.take(self.ranges, self._place(name), axis, index)

    def whole(self, name: str) -> Tensor:
        return torch.from_numpy(self.array(name).astype(np.float32))

    def _place(self, name: str) -> Stored:
        if name in self._stored:
            return self._stored[name]
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"array {name[:80]!r} is compressed, so that no row of it can be read alone; load it with numpy and write it "
                "with numpy.savez"
            )
        shape, fortran, dtype, begin = read_header(self._beginning(entry))
        if dtype.str not in _DTYPES:
            raise ValueError(
                f"array {name[:80]!r} is {dtype.str}; it is one of {', '.join(_DTYPES)}"
            )
        local = self.ranges.read(
            entry.header_offset, 30
        )  # its own header: the lengths of its name and extra field
        lengths = struct.unpack("<HH", local[26:30])
        at = entry.header_offset + 30 + sum(lengths) + begin
        stored = Stored(shape, _DTYPES[dtype.str], at, fortran and len(shape) == 2)
        tensor_file.check_stored(stored, entry.file_size - begin, self.ranges.size, name)
        self._stored[name] = stored
        return stored


def read_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array of an ``.npy``; ValueError for one that is cut off, too large or of objects."""
    size = path.stat().st_size
    with path.open("rb") as file:
        shape, fortran, dtype, begin = read_header(file.read(_HEADER))
        count = math.prod(shape)
        if count * dtype.itemsize != size - begin or size > MOST_WHOLE + _HEADER:
            raise ValueError(
                f"an array of shape {list(shape)} does not lie in its {size} bytes, or it has more than {MOST_WHOLE}"
            )
        file.seek(begin)
        values = np.frombuffer(file.read(), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


def read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, Fortran's order, dtype, where the values begin) of an array; ValueError for objects, and what is no array."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it is of .npy version {version}")
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file, max_header_size=_HEADER)
    except (
        Exception
    ) as error:  # numpy's reader of headers evaluates a literal, which may fail in many ways
        raise ValueError(
            f"it is no array of numpy: {' '.join(str(error).split())[:200]}"
        ) from error
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(
            f"it is an array of {str(dtype)[:80]}; taken are numbers, never pickled objects"
        )
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"it has the shape {str(shape)[:80]}")
    return shape, fortran, dtype, file.tell()
