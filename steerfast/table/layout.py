"""What was packed, in the layout of a table's tensors: places where rows of its own stood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steerfast.ops.records import MAX_READS, READ_WIDTH, RECORD_WIDTH, Op, Read
from steerfast.table.packing import NONE, SOURCE, TARGET, Ints, Packed


def records_of(packed: Packed, place_of: Ints, programs: Ints, sites: int) -> Ints:
    """[phases, sites, 4], a table's records of each phase. place_of: each row's place in the bank, -1 behind the last;
    programs: each program's place."""
    records = np.zeros((packed.phases, sites, RECORD_WIDTH), np.int32)
    records[..., 0] = NONE
    phase, site, finish, delta, program = packed.sites.T
    lengths = np.diff(packed.ends, prepend=0)
    reads = program != NONE
    lines = np.zeros((len(phase), RECORD_WIDTH), np.int32)
    lines[:, 0], lines[:, 1] = place_of[delta], finish
    lines[reads, 2], lines[reads, 3] = programs[program[reads]], lengths[program[reads]]
    records[phase, site] = lines
    return records


def words_of(packed: Packed, place_of: Ints, programs: Sequence[int]) -> Ints:
    """[p, 16, 12], the words of these programs as they stand in a table, with reads that do nothing behind them."""
    words = np.empty((len(programs), MAX_READS, READ_WIDTH), np.int32)
    words[:] = Read(Op.KEY).words()
    begins = np.concatenate(([0], packed.ends))
    for place, program in enumerate(programs):
        reads = packed.reads[begins[program] : begins[program + 1]]
        words[place, : len(reads)] = reads
        words[place, : len(reads), [SOURCE, TARGET]] = place_of[reads[:, [SOURCE, TARGET]]].T
    return words


def write(tensor: Tensor, places: Sequence[int], rows: Tensor) -> None:
    """All rows in one copy."""
    if places:
        tensor.index_copy_(0, torch.tensor(places, device=tensor.device), rows.to(tensor.device))
