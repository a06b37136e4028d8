"""A table filled by hand, with traps in everything that no row may read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerfast.ops.records import FINISH_CODES, MAX_READS, Op, Read, Steering


class Table:
    """Collects bank rows, programs and slots; ``steering`` makes tensors of them.

    Bank row 0 is NaN and so is the last; program 0 and slot 0 lead there, as do the unused places at the
    end of every program: a kernel that takes -1 for 0, or looks one too far, returns NaN.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._trap = torch.full((width,), torch.nan)
        self._bank = [self._trap]
        self._programs = [[Read(Op.AFFINE, 0, 0, slope=1.0)] * MAX_READS]
        self._records = [[0, FINISH_CODES["preserve"], 0, MAX_READS]]

    def row(self, values: Tensor) -> int:
        """A bank row, [D]; its place."""
        self._bank.append(values.float())
        return len(self._bank) - 1

    def program(self, reads: Sequence[Read]) -> int:
        """A program of at most 16 reads; its place."""
        assert len(reads) <= MAX_READS, f"{len(reads)} reads; a program has at most {MAX_READS}"
        self._programs.append(list(reads))
        return len(self._programs) - 1

    def slot(
        self, delta: Tensor | None = None, reads: Sequence[Read] = (), finish: str = "none"
    ) -> int:
        """A slot with a delta [D], a program, both or neither; its place."""
        row = -1 if delta is None else self.row(delta)
        program = self.program(reads) if reads else 0
        self._records.append([row, FINISH_CODES[finish], program, len(reads)])
        return len(self._records) - 1

    @property
    def slots(self) -> range:
        """The slots that may be steered with: all but the trap."""
        return range(1, len(self._records))

    def steering(self, row_slot: Tensor, row_gain: Tensor) -> Steering:
        """row_slot: [N] integers, row_gain: [N]."""
        trap = Read(Op.AFFINE, 0, len(self._bank), slope=1.0)
        filled = [reads + [trap] * (MAX_READS - len(reads)) for reads in self._programs]
        words = [[read.words() for read in reads] for reads in filled]
        records = torch.tensor(self._records, dtype=torch.int32)
        reads = torch.tensor(words, dtype=torch.int32)
        if len(reads) == 1:  # nobody reads: a table without room for programs, P = 0
            records[0, 3], reads = 0, reads[:0]
        return Steering(
            row_slot.to(torch.int32),
            row_gain.float(),
            records,
            reads,
            torch.stack([*self._bank, self._trap]),
        )
