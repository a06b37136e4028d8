"""What steering adds to a row, in plain torch: delta + sum_i gate_i * u_i(h). Part of the definition.

Every formula of ``steerfast.ops.records`` stands here once, for all rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.ops.records import GateKind, Op, Read

# As plain numbers, which torch.compile can trace where it cannot trace an enumeration.
_OP = {op.name: int(op) for op in Op}
_GATE = {gate.name: int(gate) for gate in GateKind}
_BLANK = Read(Op.KEY).words()
SMALLEST_SINE = 1e-4  # slerp does nothing nearer to its axis, where it has no plane


class _Read(NamedTuple):
    """One read of every row, each [N]; the fields of ``records.Read``, floats in float64."""

    op: Tensor
    source: Tensor
    target: Tensor
    partner: Tensor
    gate: Tensor
    key: Tensor
    slope: Tensor
    cross: Tensor
    offset: Tensor
    level: Tensor
    threshold: Tensor
    bias: Tensor


def contribution(h: Tensor, record: Tensor, reads: Tensor, bank: Tensor) -> Tensor:
    """``delta + sum_i gate_i * u_i(h)``, [N, D] in the dtype of h (float32 or float64); no gain, no finish.

    h: [N, D]. record: [N, 4] int32, each row's record. reads: [P, 16, 12] int32. bank: [V, D] float32.
    Dots, norms and coefficients are float64 and rounded to h's dtype: this is a definition, not a kernel.
    What a read does not have (a target, a share of h) it does not add, not even 0 times an infinity of the row.
    """
    added = _bank_rows(bank, record[:, 0], h.dtype)
    programs = [_read_of_rows(record, reads, i) for i in range(_used(record, reads))]
    if not programs:
        return added
    exact = h.double()
    norm = torch.linalg.vector_norm(exact, dim=-1)
    dots = torch.stack([_dot(exact, bank, read.source) for read in programs])
    for i, read in enumerate(programs):
        gate = _gate(read, _pick(dots, read.key), norm)
        f, of_h = _coefficients(read, dots[i], _pick(dots, read.partner), norm)
        factor = torch.where(read.target >= 0, gate * f, 0.0).to(h.dtype)[:, None]
        added = added + factor * _bank_rows(bank, read.target, h.dtype)
        share = torch.where(of_h != 0, gate * of_h, 0.0).to(h.dtype)[:, None]
        added = added + torch.where(share != 0, share * h, 0.0)
    return added


def _used(record: Tensor, reads: Tensor) -> int:
    """How many reads to look at: as many as any row has, or all where asking would break a graph."""
    if reads.shape[0] == 0 or record.shape[0] == 0:
        return 0
    capturing = record.is_cuda and torch.cuda.is_current_stream_capturing()
    if torch.compiler.is_compiling() or capturing:
        return reads.shape[1]
    return int(record[:, 3].max())


def _read_of_rows(record: Tensor, reads: Tensor, i: int) -> _Read:
    """The i-th read of each row's program; a KEY without a source where the program is shorter."""
    there = record[:, 3] > i
    blank = torch.tensor(_BLANK, dtype=torch.int32, device=reads.device)
    words = torch.where(there[:, None], reads[torch.where(there, record[:, 2], 0).long(), i], blank)
    integers, floats = words[:, :6], words[:, 6:].contiguous().view(torch.float32).double()
    return _Read(*integers.unbind(1), *floats.unbind(1))


def _bank_rows(bank: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, D]: the bank row of each row, zeros where it is -1."""
    return torch.where((row >= 0)[:, None], bank[row.clamp(min=0).long()].to(dtype), 0.0)


def _dot(exact: Tensor, bank: Tensor, source: Tensor) -> Tensor:
    return torch.where(source >= 0, (exact * _bank_rows(bank, source, torch.float64)).sum(-1), 0.0)


def _pick(dots: Tensor, place: Tensor) -> Tensor:
    """[N]: the dot of the read that each row names, 0 where it names none."""
    picked = dots.gather(0, place.clamp(min=0).long()[None])[0]
    return torch.where(place >= 0, picked, 0.0)


def _gate(read: _Read, k: Tensor, norm: Tensor) -> Tensor:
    hard = (k + read.bias > 0).double()
    cosine = ((k > read.bias * norm) & (norm > 0)).double()
    gate = torch.where(read.gate == _GATE["HARD"], hard, 1.0)
    gate = torch.where(read.gate == _GATE["COSINE"], cosine, gate)
    return torch.where(read.gate == _GATE["SIGMOID"], torch.sigmoid(k + read.bias), gate)


def _coefficients(read: _Read, p: Tensor, partner: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """f, the factor of the target, and the factor of h itself (slerp only); [N] float64 each."""
    line = read.slope * p + read.offset
    z = p + read.offset
    sign = (p > 0).double() - (p < 0).double()
    is_turn, is_slerp = read.op == _OP["TURN"], read.op == _OP["SLERP"]
    # Unused branches get harmless inputs, so that their gradients stay finite. So does a row without a part in the
    # plane: a length's subgradient at 0 is 0.
    in_plane = is_turn & ((p != 0) | (partner != 0))
    radius = torch.hypot(torch.where(in_plane, p, 1.0), torch.where(in_plane, partner, 0.0))
    radius = torch.where(in_plane, radius, 0.0)
    slerp, of_h = _slerp(read.slope, p, norm, is_slerp)
    f = torch.zeros_like(p)
    for op, value in (
        (_OP["AFFINE"], line + read.cross * partner),
        (_OP["FLOOR"], line.clamp(min=0.0)),
        (_OP["CEILING"], line.clamp(max=0.0)),
        (_OP["SIGNED"], read.slope * sign),
        (_OP["RELATIVE"], read.slope * norm),
        (_OP["FEATURE"], read.level - torch.where(z > read.threshold, z, 0.0)),
        (_OP["TURN"], read.slope * p + read.cross * radius),
        (_OP["SLERP"], slerp),
    ):
        f = torch.where(read.op == op, value, f)
    return f, of_h


def _slerp(t: Tensor, p: Tensor, norm: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(f, s - 1) of ``Op.SLERP``: h moved along the great circle towards the axis, by t of the angle."""
    cosine = (p / torch.where(norm > 0, norm, 1.0)).clamp(-1.0, 1.0)
    sine = torch.sqrt(torch.where(wanted, 1.0 - cosine * cosine, 1.0))
    there = wanted & (norm > 0) & (sine >= SMALLEST_SINE)
    angle = torch.acos(torch.where(there, cosine, 0.0))
    share = torch.sin((1.0 - t) * angle) / torch.sin(angle)
    f = norm * (torch.cos((1.0 - t) * angle) - cosine * share)
    return torch.where(there, f, 0.0), torch.where(there, share - 1.0, 0.0)
