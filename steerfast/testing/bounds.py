"""How far float32 arithmetic may take a steered row from its exact value, and where it may not decide.

Written from the table of operators, read by read and slot by slot, without the code of the reference:
a mistake there does not widen its own tolerance.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerfast.ops.records import FINISH_CODES, GateKind, Op, Read, Steering
from steerfast.ops.reference import active_rows

RELATIVE = 2.0**-20  # float32's arithmetic, relative to the magnitudes that are summed
UNDERFLOW = 2.0**-145  # and where that is less than float32's smallest steps
MARGIN = 2.0**-16  # a dot may not be nearer to a threshold, relative to |h| |key|
SMALLEST_SINE = 1e-4  # slerp's


@dataclass(frozen=True)
class Bounds:
    """Of the rows of one call. before, y, slack: float64 [N], [N, D], [N, D]; clear: [N] bool.

    before: |h|. y: the row before the finish. slack: how far from it float32 may be:

        2^-145 + 2^-20 (|h_j| + |g| (|delta_j| + sum_i gate_i (|f_i| + df_i) |target_ij|))

    where df_i collects |h| |source| times how strongly f_i follows its dot (|slope| for a line), and the
    constants that are added to it; a sigmoid's gate and slerp bring more, see ``_of_gate`` and ``_of_slerp``.
    clear: every decision of the row (a gate, a sign, a feature, slerp's limit) is further from its
    threshold than MARGIN, and its finish does not divide by a remainder of cancellation.
    """

    before: Tensor
    y: Tensor
    slack: Tensor
    clear: Tensor
    finish: Tensor

    def after_finish(self, stream: Tensor) -> Tensor:
        """slack as the finish passes it on; stream: the exact result, float64 [N, D]."""
        after = self.y.norm(dim=-1)
        safe = torch.where(after > 0, after, 1.0)
        factor = torch.where(after > 0, self.before / safe, 1.0)
        factor = torch.where(self.finish == FINISH_CODES["shrink"], factor.clamp(max=1.0), factor)
        of_factor = stream.abs() * (RELATIVE + self.slack.norm(dim=-1) / safe)[:, None]
        finished = (self.finish > 0)[:, None]
        scaled = self.slack * factor[:, None] + of_factor + UNDERFLOW
        return torch.where(finished, scaled, self.slack)


def reads_of(words: Tensor) -> list[Read]:
    """``Read.words`` undone, for [K, 12] int32."""
    found = []
    for row in words.tolist():
        values = struct.unpack("=6i6f", struct.pack("=12i", *row))
        op, source, target, partner, gate, key, *numbers = values
        found.append(Read(Op(op), source, target, partner, GateKind(gate), key, *numbers))
    return found


def analyse(h: Tensor, steering: Steering) -> Bounds:
    """Bounds of ``finish(h + g * contribution)``. h: [N, D] of any float dtype."""
    exact = h.double()
    before = exact.norm(dim=-1)
    y, slack = exact.clone(), RELATIVE * exact.abs() + UNDERFLOW
    clear = torch.ones(len(h), dtype=torch.bool)
    finish = torch.zeros(len(h), dtype=torch.int32)
    active = active_rows(steering)
    for slot in sorted(set(steering.row_slot[active].tolist())):
        rows = (active & (steering.row_slot == slot)).nonzero()[:, 0]
        delta, code, program, count = steering.records[slot].tolist()
        reads = reads_of(steering.reads[program, :count]) if count else []
        added, spread, decided = _contribution(exact[rows], before[rows], reads, steering.bank)
        if delta >= 0:
            added = added + steering.bank[delta].double()
            spread = spread + RELATIVE * steering.bank[delta].double().abs()
        gain = steering.row_gain[rows].double()[:, None]
        y[rows] += gain * added
        slack[rows] += gain.abs() * spread
        finish[rows] = code
        if code:
            after = y[rows].norm(dim=-1)
            largest = before[rows] + (gain * added).norm(dim=-1)
            decided = decided & ((after == 0) | (after >= 2.0**-7 * largest))
        clear[rows] = decided
    return Bounds(before, y, slack, clear, finish)


def _contribution(
    h: Tensor, norm: Tensor, reads: Sequence[Read], bank: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(contribution [N, D], its slack [N, D], clear [N]) of one program to rows that share it."""
    added, spread = torch.zeros_like(h), torch.zeros_like(h)
    clear = torch.ones(len(h), dtype=torch.bool)
    sources = [_row(bank, read.source, h) for read in reads]
    dots = [h @ source for source in sources]
    reach = [norm * source.norm() for source in sources]  # |p| at most; its error is 2^-20 of this
    none = torch.zeros_like(norm)
    for i, read in enumerate(reads):
        k, k_reach = (dots[read.key], reach[read.key]) if read.key >= 0 else (none, none)
        gate, gate_error, decided = _of_gate(read, k, k_reach, norm)
        clear = clear & decided
        if read.op == Op.KEY:
            continue
        other, of_other = none, none
        if read.partner >= 0:
            other, of_other = dots[read.partner], reach[read.partner]
        target = _row(bank, read.target, h)
        if read.op == Op.SLERP:
            u, error, decided = _of_slerp(read, h, dots[i], norm, sources[i], target)
        else:
            f, df, decided = _of_coefficient(read, dots[i], reach[i], other, of_other, norm)
            exactly = (h * sources[i] == 0).all(-1)  # p = 0 in any arithmetic
            decided = decided | exactly
            u = f[:, None] * target
            error = RELATIVE * (f.abs() + df)[:, None] * target.abs()
        clear = clear & (decided | (gate == 0))
        added += gate[:, None] * u
        spread += gate[:, None] * error + gate_error[:, None] * u.abs()
    return added, spread, clear


def _row(bank: Tensor, row: int, like: Tensor) -> Tensor:
    return bank[row].double() if row >= 0 else torch.zeros_like(like[0])


def _of_gate(read: Read, k: Tensor, reach: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gate, its error, clear), each [N]. A sigmoid's error is what it does between k - e and k + e,
    e = 2^-20 (|h| |key| + |bias|), and 2^-20 of itself for the exponential; the others have none."""
    none, sure = torch.zeros_like(k), torch.ones_like(k, dtype=torch.bool)
    if read.gate == GateKind.HARD:
        z = k + read.bias
        return (z > 0).double(), none, (z.abs() >= MARGIN * (reach + abs(read.bias)))
    if read.gate == GateKind.COSINE:
        z = k - read.bias * norm
        wide = reach + abs(read.bias) * norm
        return ((z > 0) & (norm > 0)).double(), none, (z.abs() >= MARGIN * wide)
    if read.gate == GateKind.SIGMOID:
        z, e = k + read.bias, RELATIVE * (reach + abs(read.bias))
        gate = torch.sigmoid(z)
        step = torch.maximum(torch.sigmoid(z + e) - gate, gate - torch.sigmoid(z - e))
        return gate, step + RELATIVE * gate, sure
    return torch.ones_like(k), none, sure


def _of_coefficient(
    read: Read, p: Tensor, reach: Tensor, partner: Tensor, partner_reach: Tensor, norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(f, df, clear), each [N]: 2^-20 * df is the error of f beyond that of rounding f itself."""
    sure = torch.ones_like(p, dtype=torch.bool)
    line = read.slope * p + read.offset
    of_line = abs(read.slope) * reach + abs(read.offset)
    cross = abs(read.cross)
    if read.op == Op.AFFINE:
        return line + read.cross * partner, of_line + cross * partner_reach, sure
    if read.op in (Op.FLOOR, Op.CEILING):
        f = line.clamp(min=0.0) if read.op == Op.FLOOR else line.clamp(max=0.0)
        df = torch.where((f == 0) & (line.abs() > RELATIVE * of_line), 0.0, of_line)
        return f, df, sure
    if read.op == Op.SIGNED:
        return read.slope * p.sign(), torch.zeros_like(p), p.abs() >= MARGIN * reach
    if read.op == Op.RELATIVE:
        return read.slope * norm, torch.zeros_like(p), sure
    if read.op == Op.FEATURE:
        z, wide = p + read.offset, reach + abs(read.offset)
        over = z > read.threshold
        f = read.level - torch.where(over, z, 0.0)
        df = abs(read.level) + torch.where(over, wide, 0.0)
        return f, df, (z - read.threshold).abs() >= MARGIN * wide
    assert read.op == Op.TURN, f"no bound is known for {read.op!r}"
    f = read.slope * p + read.cross * torch.hypot(p, partner)
    return f, abs(read.slope) * reach + cross * (reach + partner_reach), sure


def _of_slerp(
    read: Read, h: Tensor, p: Tensor, norm: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(u [N, D], its error [N, D], clear [N]) of u = n (cos w' - c s) target + (s - 1) h, c = p/n.

    c is off by 2^-20 (1 + |source|), which moves u along du/dc; sin w, from 1 - c^2, is off by the
    same over sin w, which moves s (h - c n target) besides; and every product is rounded. Towards the axis
    (c > 0) u vanishes smoothly and is bounded directly; away from it the plane is lost, so that only
    rows in which both arithmetics are exact may be nearer than MARGIN (``_opposite``).
    """
    t, moving = read.slope, norm > 0
    safe = torch.where(moving, norm, 1.0)
    c = (p / safe).clamp(-1.0, 1.0)
    sine = torch.sqrt((1.0 - c * c).clamp(min=0.0))
    there = moving & (sine >= SMALLEST_SINE)
    w = torch.acos(torch.where(there, c, 0.0))
    wide = torch.where(there, sine, 1.0)  # sin w
    turned = (1.0 - t) * w
    s = torch.sin(turned) / wide
    f = norm * (torch.cos(turned) - c * s)
    u = torch.where(there[:, None], f[:, None] * target + (s - 1.0)[:, None] * h, 0.0)

    ds = ((1.0 - t) * torch.cos(turned) - s * c) / wide  # ds/dw
    df = norm * (-(1.0 - t) * torch.sin(turned) + wide * s - c * ds)  # df/dw
    off = (1.0 + float(source.norm())) * RELATIVE
    across = (h - (c * norm)[:, None] * target).abs()
    along = (df[:, None] * target + ds[:, None] * h).abs() / wide[:, None]
    products = (norm * (torch.cos(turned).abs() + (c * s).abs()))[:, None] * target.abs()
    products = products + (s.abs() + 1.0)[:, None] * h.abs()
    error = off * (along + (s.abs() / wide.square())[:, None] * across) + RELATIVE * products
    near = 4.0 * (1.0 + abs(t)) * (off * (h.abs() + norm[:, None] * target.abs()) + across)
    towards = (c > 0)[:, None]
    error = torch.where(there[:, None], torch.where(towards, error.minimum(near), error), 0.0)
    error = torch.where(~there[:, None] & towards, near, error)
    clear = (c >= 0) | (1.0 + c >= MARGIN) | _opposite(h, source)
    return u, error, clear


def _opposite(h: Tensor, source: Tensor) -> Tensor:
    """[N]: h is -2^m times a source made of 4^k equal numbers of norm 1, so that p = -n in any arithmetic."""
    entries = source[source != 0]
    fits = len(entries) > 0 and bool((entries == entries[0]).all()) and float(source.norm()) == 1.0
    scale = h.norm(dim=-1)
    power = torch.frexp(torch.where(scale > 0, scale, 1.0)).mantissa == 0.5
    opposite: Tensor = (h == -scale[:, None] * source).all(-1) & power & fits
    return opposite
