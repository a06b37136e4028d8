"""The reading terms of a row in Triton: dot products, coefficients, and what they add. No kernel here.

The formulas are those of ``steerfast/ops/records.py``. A program's reads lie in tensors of MAX_READS
elements, one a read, so that fields, gates and coefficients of all reads take one step; only what is D
wide goes through the reads in a loop, whose length is read on the device.
"""

from dataclasses import fields
from math import pi

import triton
import triton.language as tl

from steerfast.ops.contribution import SMALLEST_SINE as _SMALLEST_SINE
from steerfast.ops.records import MAX_READS as _MAX_READS
from steerfast.ops.records import READ_WIDTH as _READ_WIDTH
from steerfast.ops.records import GateKind, Op, Read

MAX_READS = tl.constexpr(_MAX_READS)
READ_WIDTH = tl.constexpr(_READ_WIDTH)
SMALLEST_SINE = tl.constexpr(_SMALLEST_SINE)
PI = tl.constexpr(pi)
_WORDS = [field.name for field in fields(Read)]
OP = tl.constexpr(_WORDS.index("op"))
SOURCE = tl.constexpr(_WORDS.index("source"))
TARGET = tl.constexpr(_WORDS.index("target"))
PARTNER = tl.constexpr(_WORDS.index("partner"))
GATE = tl.constexpr(_WORDS.index("gate"))
KEY = tl.constexpr(_WORDS.index("key"))
SLOPE = tl.constexpr(_WORDS.index("slope"))
CROSS = tl.constexpr(_WORDS.index("cross"))
OFFSET = tl.constexpr(_WORDS.index("offset"))
LEVEL = tl.constexpr(_WORDS.index("level"))
THRESHOLD = tl.constexpr(_WORDS.index("threshold"))
BIAS = tl.constexpr(_WORDS.index("bias"))
AFFINE = tl.constexpr(int(Op.AFFINE))
FLOOR = tl.constexpr(int(Op.FLOOR))
CEILING = tl.constexpr(int(Op.CEILING))
SIGNED = tl.constexpr(int(Op.SIGNED))
RELATIVE = tl.constexpr(int(Op.RELATIVE))
FEATURE = tl.constexpr(int(Op.FEATURE))
TURN = tl.constexpr(int(Op.TURN))
SLERP = tl.constexpr(int(Op.SLERP))
HARD = tl.constexpr(int(GateKind.HARD))
COSINE = tl.constexpr(int(GateKind.COSINE))
SIGMOID = tl.constexpr(int(GateKind.SIGMOID))


@triton.jit
def contribution(
    delta_row,
    wide,
    norm,
    program_ptr,
    count,
    bank_ptr,
    bank_stride,
    columns,
    D: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """delta + sum_i gate_i * (f_i * bank[target_i] + share_i * h), [BLOCK_D] float32.

    wide: h in float32; norm: |h|. program_ptr: the program's first read; count: how many it has.
    """
    places = tl.arange(0, MAX_READS)
    there = places < count
    dots = tl.zeros([MAX_READS], tl.float32)
    # Each row is on its way while the one before it is summed across the warps.
    row = _row_of(program_ptr, 0, count, SOURCE, bank_ptr, bank_stride, columns, D, ALIGNMENT)
    for i in range(count):
        ahead = _row_of(
            program_ptr, i + 1, count, SOURCE, bank_ptr, bank_stride, columns, D, ALIGNMENT
        )
        dots = tl.where(places == i, tl.sum(wide * row), dots)
        row = ahead

    # What a read does not have is 0, not 0 times an infinity of the row.
    dots = tl.where(_integers(program_ptr, SOURCE, places, there) >= 0, dots, 0.0)
    op = _integers(program_ptr, OP, places, there)
    gate = _gates(program_ptr, places, there, dots, norm)
    f = gate * _coefficients(op, program_ptr, places, there, dots, norm)
    of_h = 0.0
    if tl.sum((op == SLERP).to(tl.int32)) > 0:
        exact = tl.zeros([MAX_READS], tl.float64)
        # Hoisted, the row in float64 would hold two registers an element through the loop.
        for i in tl.range(0, count, disable_licm=True):
            if _picked(op, i, places) == SLERP:
                axis = _row_of(
                    program_ptr, i, count, SOURCE, bank_ptr, bank_stride, columns, D, ALIGNMENT
                )
                exact = tl.where(
                    places == i, tl.sum(wide.to(tl.float64) * axis.to(tl.float64)), exact
                )
        exact_norm = tl.sqrt(tl.sum(wide.to(tl.float64) * wide.to(tl.float64)))
        slope = _floats(program_ptr, SLOPE, places, there)
        of_axis, share = _slerp(slope.to(tl.float64), exact, exact_norm)
        f = tl.where(op == SLERP, gate * of_axis.to(tl.float32), f)
        share = share.to(tl.float32)
        of_h = tl.sum(tl.where((op == SLERP) & (share != 0.0), gate * share, 0.0))

    f = tl.where(_integers(program_ptr, TARGET, places, there) >= 0, f, 0.0)
    # Not before: the slerp wants the registers.
    added = bank_row(bank_ptr, bank_stride, delta_row, columns, D, ALIGNMENT)
    for i in range(count):
        row = _row_of(program_ptr, i, count, TARGET, bank_ptr, bank_stride, columns, D, ALIGNMENT)
        added += _picked(f, i, places) * row
    return added + tl.where(of_h != 0.0, of_h * wide, 0.0)


@triton.jit
def bank_row(bank_ptr, bank_stride, row, columns, D: tl.constexpr, ALIGNMENT: tl.constexpr):
    """float32 [BLOCK_D]; zeros, and nothing is read, where row is -1."""
    row_ptr = tl.multiple_of(bank_ptr + row.to(tl.int64) * bank_stride, ALIGNMENT)
    return tl.load(row_ptr + columns, mask=(columns < D) & (row >= 0), other=0.0)


@triton.jit
def _row_of(
    program_ptr,
    i,
    count,
    word: tl.constexpr,
    bank_ptr,
    bank_stride,
    columns,
    D: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """The source or target of the i-th read; zeros past the program's end."""
    row = tl.load(program_ptr + i * READ_WIDTH + word, mask=i < count, other=-1)
    return bank_row(bank_ptr, bank_stride, row, columns, D, ALIGNMENT)


@triton.jit
def _integers(program_ptr, word: tl.constexpr, places, there):
    return tl.load(program_ptr + places * READ_WIDTH + word, mask=there, other=0)


@triton.jit
def _floats(program_ptr, word: tl.constexpr, places, there):
    return _integers(program_ptr, word, places, there).to(tl.float32, bitcast=True)


@triton.jit
def _picked(values, place, places):
    """values[place], a scalar. A sum: NaN of another place stays there."""
    return tl.sum(tl.where(places == place, values, 0))


@triton.jit
def _named(dots, program_ptr, word: tl.constexpr, places, there):
    """[MAX_READS]: for each read the dot of the read that its partner or key names, 0 where -1."""
    name = _integers(program_ptr, word, places, there)
    return tl.sum(tl.where(name[:, None] == places[None, :], dots[None, :], 0.0), axis=1)


@triton.jit
def _gates(program_ptr, places, there, dots, norm):
    kind = _integers(program_ptr, GATE, places, there)
    bias = _floats(program_ptr, BIAS, places, there)
    k = _named(dots, program_ptr, KEY, places, there)
    z = k + bias
    gate = tl.where(kind == HARD, (z > 0.0).to(tl.float32), 1.0)
    # Closed where |h| = 0, since k is 0 there too.
    gate = tl.where(kind == COSINE, (k > bias * norm).to(tl.float32), gate)
    return tl.where(kind == SIGMOID, tl.div_rn(1.0, 1.0 + tl.exp(-z)), gate)


@triton.jit
def _coefficients(op, program_ptr, places, there, p, norm):
    """f of every read but slerp's, [MAX_READS] float32; 0 past the program's end."""
    slope = _floats(program_ptr, SLOPE, places, there)
    cross = _floats(program_ptr, CROSS, places, there)
    offset = _floats(program_ptr, OFFSET, places, there)
    level = _floats(program_ptr, LEVEL, places, there)
    threshold = _floats(program_ptr, THRESHOLD, places, there)
    partner = _named(p, program_ptr, PARTNER, places, there)
    sloped = slope * p
    line = sloped + offset
    z = p + offset
    sign = (p > 0.0).to(tl.float32) - (p < 0.0).to(tl.float32)
    f = tl.where(op == AFFINE, line + cross * partner, 0.0)
    # Comparisons, not tl.maximum, which would turn NaN into 0.
    f = tl.where(op == FLOOR, tl.where(line < 0.0, 0.0, line), f)
    f = tl.where(op == CEILING, tl.where(line > 0.0, 0.0, line), f)
    f = tl.where(op == SIGNED, slope * sign, f)
    f = tl.where(op == RELATIVE, slope * norm, f)
    f = tl.where(op == FEATURE, level - tl.where(z > threshold, z, 0.0), f)
    return tl.where(op == TURN, sloped + cross * _hypot(p, partner), f)


@triton.jit
def _hypot(p, q):
    """C's: no square leaves float32, infinity beside NaN is infinity."""
    p = tl.abs(p)
    q = tl.abs(q)
    # In both NaN stays: comparisons, not tl.maximum.
    larger = tl.where(p > q, p, q)
    smaller = tl.where(p > q, q, p)
    ratio = tl.div_rn(smaller, tl.where(larger > 0.0, larger, 1.0))
    length = larger * tl.sqrt_rn(1.0 + ratio * ratio)
    return tl.where((p == float("inf")) | (q == float("inf")), float("inf"), length)


@triton.jit
def _slerp(t, p, norm):
    """(f, s - 1) of ``Op.SLERP`` in float64, without its differences of nearly equal numbers.

    With a = t w / 2:  f = n sin(t w) / sin w = 2 n sin a cos a / sin w,
    s - 1 = (sin(w - t w) - sin w) / sin w = -2 sin a cos(w - a) / sin w.
    float64, because 1 - (p/n)^2 cancels near the axis and cos a near w = pi does.
    """
    # 0 / 0 is NaN, which fails the comparison with SMALLEST_SINE.
    cosine = p / norm
    cosine = tl.where(cosine > 1.0, 1.0, tl.where(cosine < -1.0, -1.0, cosine))
    beside = tl.abs(cosine)
    sine = tl.sqrt((1.0 - beside) * (1.0 + beside))
    there = sine >= SMALLEST_SINE
    cosine = tl.where(there, cosine, 0.0)
    sine = tl.where(there, sine, 1.0)
    acute = 2.0 * _arctangent(sine / (1.0 + beside))
    angle = tl.where(cosine < 0.0, PI - acute, acute)
    sin_a, cos_a = _sine_and_cosine(0.5 * t * angle)
    f = norm * (2.0 * sin_a * cos_a / sine)
    share = -2.0 * sin_a * (cosine * cos_a + sine * sin_a) / sine
    return tl.where(there, f, 0.0), tl.where(there, share, 0.0)


# Of our own, since the interpreter has no libdevice, and libdevice's sine a table in local memory.
@triton.jit
def _arctangent(z):
    """atan of 0 <= z <= 1, float64, to 1e-12 relative: halved twice, then the power series."""
    z = z / (1.0 + tl.sqrt(1.0 + z * z))
    z = z / (1.0 + tl.sqrt(1.0 + z * z))
    square = z * z
    series = tl.zeros_like(z)
    for k in tl.static_range(8):
        series = 1.0 / (15 - 2 * k) - square * series
    return 4.0 * z * series


@triton.jit
def _sine_and_cosine(angle):
    """float64, to 1e-12 for |angle| up to 1e4: power series within pi/4 of the next multiple of pi/2."""
    quarter = tl.floor(angle * (2.0 / PI) + 0.5)
    rest = angle - quarter * (0.5 * PI)
    square = rest * rest
    sine = tl.zeros_like(rest)
    cosine = tl.zeros_like(rest)
    for k in tl.static_range(8):
        sine = 1.0 - square * sine * (1.0 / ((16 - 2 * k) * (17 - 2 * k)))
        cosine = 1.0 - square * cosine * (1.0 / ((15 - 2 * k) * (16 - 2 * k)))
    sine = rest * sine
    turn = quarter.to(tl.int64) & 3
    odd = (turn & 1) == 1
    sin_a = tl.where(odd, cosine, sine)
    cos_a = tl.where(odd, sine, cosine)
    return tl.where(turn >= 2, -sin_a, sin_a), tl.where((turn == 1) | (turn == 2), -cos_a, cos_a)
