"""The rows of a step at one fixed address, whatever their number: what compiled code and captured graphs read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from steerfast.routing.route import RowBuffers, Rows, Staging
from steerfast.table.entry import UNSTEERED


class FixedRows(RowBuffers):
    """``RowBuffers`` with one buffer for all sizes up to ``capacity``: rows beyond a step's are not steered."""

    def __init__(self, capacity: int, device: torch.device | str = "cpu") -> None:
        self.capacity = 1 << (capacity - 1).bit_length()
        self._written = 0
        super().__init__(device)
        self.lines = self._buffer(self.capacity, self._lines)
        self._parts: dict[int, Staging] = {}

    def at(self, rows: int) -> Rows:
        return self._rows(self.lines, rows)

    def fill(self, rows: int, write: Callable[[NDArray[np.int32]], object]) -> Rows:
        # As much as this step and the one before have; behind it nothing was ever written.
        width = min(self.capacity, max(64, 1 << (max(rows, self._written) - 1).bit_length()))
        if width not in self._parts:
            self._parts[width] = Staging(
                torch.empty((5, width), dtype=torch.int32, device=self.device)
            )
        part = self._parts[width]
        part.send(write)
        self.lines[:, :width].copy_(part.target)
        self._written = rows
        return self.at(rows)

    def unsteered(self, rows: int) -> Rows:
        self.clear()
        return self.at(rows)

    def put(self, rows: Rows) -> None:
        """A route that is on the device already."""
        count = len(rows.slot)
        if self._written > count:
            self.lines[0, count : self._written].fill_(UNSTEERED)
        for buffer, values in zip(self.at(count), rows, strict=True):
            buffer.copy_(values)
        self._written = count

    def clear(self) -> None:
        """No row is steered."""
        self.lines[0].fill_(UNSTEERED)
        self._written = 0
