"""The tensor of the programs, and whether kernels are shown any of it.

Kernels that see none run faster on a GPU (fewer registers, more blocks at a time), and which one runs follows from the
tensor's shape. So a table may keep its programs back until a plan has some.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.ops.records import MAX_READS, READ_WIDTH


class ShownReads:
    """whole: [programs, 16, 12] int32. now: what kernels see, all of it or none. late: none until a plan has programs.

    lock: the table's. A plan is checked and shown under it at once, so that no capture begins in between.
    """

    def __init__(
        self, programs: int, late: bool, device: torch.device | str, lock: threading.Condition
    ) -> None:
        shape = (programs, MAX_READS, READ_WIDTH)
        self.late, self._captured, self._lock = late, False, lock
        self.whole = torch.zeros(shape, dtype=torch.int32, device=device)
        self.now: Tensor = self.whole[:0] if late else self.whole

    def to(self, device: torch.device) -> None:
        """Move the tensor."""
        self.whole = self.whole.to(device)
        self.now = self.whole[: len(self.now)]

    def note_capture(self) -> None:
        """A graph is captured, and with it which kernels run. Compiled code guards on the shape, and is compiled once more."""
        with self._lock:
            self._captured = True

    def check(self) -> None:
        """SteerfastError where a graph was captured of kernels that would pass over a plan's programs."""
        if self._captured and len(self.now) < len(self.whole):
            raise SteerfastError(
                "this plan has terms that read the stream, and a graph was captured before there were any, of kernels that know "
                f"none: attach(model, programs={len(self.whole)}) takes those that do from the beginning (so does the use of such "
                "a plan before the capture)"
            )

    def show(self) -> None:
        """All of it, to whatever runs from now on, unless a graph was captured of kernels that see none. What runs already
        steers by plans without programs, to which it makes no difference."""
        with self._lock:
            if not self._captured:
                self.now = self.whole
