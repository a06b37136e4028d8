"""The layout of what the kernels read: records, reads and their codes. ``csrc/steer.h`` says the same in C++.

A **record** says what a slot does at a site. A **read** is one dot product of the row, p = <h, bank[source]>,
and what is made of it: a coefficient f and a direction f * bank[target] that is added. A **program** is the
list of reads of a (site, slot). ``Steering`` is all of it together. Operators of plans become reads in
``steerfast.table.programs``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

RECORD_WIDTH = 4  # [bank row of the delta or -1, finish, program, number of its reads]
FINISH_CODES = {"none": 0, "preserve": 1, "shrink": 2}

MAX_READS = 16  # of one program
READ_WIDTH = 12  # words of 32 bits: six integers, then six float32 as they lie in memory


class Op(IntEnum):
    """How a read's coefficient f follows from its dot p, its partner's dot p' and n = |h|."""

    KEY = 0  # f = 0: its dot opens gates of other reads
    AFFINE = 1  # f = slope * p + cross * p' + offset
    FLOOR = 2  # f = max(slope * p + offset, 0)
    CEILING = 3  # f = min(slope * p + offset, 0)
    SIGNED = 4  # f = slope * sign(p), sign(0) = 0
    RELATIVE = 5  # f = slope * n
    FEATURE = 6  # z = p + offset; f = level - (z if z > threshold else 0)
    TURN = 7  # f = slope * p + cross * hypot(p, p')
    # f = n (cos w' - cos w * s), and (s - 1) h is added; w = acos(p/n), w' = (1 - slope) w, s = sin w' / sin w;
    # nothing where n = 0 or sin w < 1e-4
    SLERP = 8


class GateKind(IntEnum):
    """What multiplies f (and slerp's share of h), from the dot k of the read ``key`` and n = |h|."""

    OPEN = 0  # 1
    HARD = 1  # 1 where k + bias > 0, else 0
    COSINE = 2  # 1 where k > bias * n and n > 0, else 0; the key's bank row has norm 1
    SIGMOID = 3  # 1 / (1 + exp(-(k + bias)))


@dataclass(frozen=True)
class Read:
    """One row of a program. source, target: bank rows, -1 for none (p = 0; nothing is added).
    partner, key: reads of the same program, by place, -1 for none (p' = 0; gate OPEN)."""

    op: Op
    source: int = -1
    target: int = -1
    partner: int = -1
    gate: GateKind = GateKind.OPEN
    key: int = -1
    slope: float = 0.0
    cross: float = 0.0
    offset: float = 0.0
    level: float = 0.0
    threshold: float = 0.0
    bias: float = 0.0

    def words(self) -> list[int]:
        """The READ_WIDTH int32 words of this read; OverflowError where float32 cannot hold a value."""
        return list(struct.unpack("=12i", struct.pack("=6i6f", *vars(self).values())))


class Steering(NamedTuple):
    """What one site's kernel reads. All tensors contiguous, on the device of the stream.

    row_slot: [N] int32, the slot of each row; -1 means not steered.
    row_gain: [N] float32, the schedule's gain g; 0 means not steered.
    records: [S, 4] int32, this site's record of each slot.
    reads: [P, 16, 12] int32, the programs of reading terms; P may be 0.
    bank: [V, D] float32, the deltas and the directions of all slots and sites.
    """

    row_slot: Tensor
    row_gain: Tensor
    records: Tensor
    reads: Tensor
    bank: Tensor
