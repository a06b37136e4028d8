"""The whole family in Triton: one kernel behind all ops of ``steerfast.ops``.

Rounding points are those of ``steerfast/ops/reference.py``; reading terms are in ``kernels/reads.py``.
Nothing here allocates, checks or chooses; ``steerfast/ops/triton.py`` does.
"""

import triton
import triton.language as tl
from torch import Tensor

from steerfast.kernels.launch_table import Config
from steerfast.kernels.lengths import finished, length_of
from steerfast.kernels.reads import MAX_READS, READ_WIDTH, bank_row, contribution
from steerfast.ops.records import FINISH_CODES, Steering

NONE = tl.constexpr(FINISH_CODES["none"])

# What a launch would find out about alignment differs between forms, and with it the elements of a
# thread and the order of sums. ALIGNMENT says it instead, the same for all forms of a (D, dtype).
UNSPECIALIZED = [
    *("x_ptr", "x_stride", "residual_ptr", "residual_stride", "stream_ptr", "stream_stride"),
    *("weight_ptr", "normed_ptr", "normed_stride", "bank_ptr", "bank_stride"),
]


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNSPECIALIZED)
def steer_add_rms_norm_kernel(
    x_ptr,
    x_stride,
    residual_ptr,
    residual_stride,
    stream_ptr,
    stream_stride,
    weight_ptr,
    normed_ptr,
    normed_stride,
    eps,
    row_slot_ptr,
    row_gain_ptr,
    records_ptr,
    records_stride,
    reads_ptr,
    bank_ptr,
    bank_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # of every row in bytes
    HAS_X: tl.constexpr,
    HAS_STEERING: tl.constexpr,
    HAS_READS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    FP32_NORM: tl.constexpr,
):
    # Rows may lie more than 2^31 elements in: offsets are int64.
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D

    # Slot, record and delta are a chain of dependent loads: it starts before the row's own.
    if HAS_STEERING:
        slot = tl.load(row_slot_ptr + row)
        gain = tl.load(row_gain_ptr + row)
        record_ptr = records_ptr + slot.to(tl.int64) * records_stride
        delta_row = tl.load(record_ptr, mask=slot >= 0, other=0)
        finish = tl.load(record_ptr + 1, mask=slot >= 0, other=0)
        read_count = 0
        if HAS_READS:
            program = tl.load(record_ptr + 2, mask=slot >= 0, other=0)
            read_count = tl.load(record_ptr + 3, mask=slot >= 0, other=0)

    residual_row_ptr = tl.multiple_of(residual_ptr + row * residual_stride, ALIGNMENT)
    h = tl.load(residual_row_ptr + columns, mask=inside, other=0.0)
    if HAS_X:
        x_row_ptr = tl.multiple_of(x_ptr + row * x_stride, ALIGNMENT)
        x = tl.load(x_row_ptr + columns, mask=inside, other=0.0)
        h = (h.to(tl.float32) + x.to(tl.float32)).to(h.dtype)
    if HAS_NORM:
        # Not of weight_ptr itself: on an argument the hint is lost.
        weights_ptr = tl.multiple_of(weight_ptr + columns, ALIGNMENT)
    # With reads the weight would take registers away from them, so it is loaded later.
    if HAS_NORM and not HAS_READS:
        weight = tl.load(weights_ptr, mask=inside, other=0.0)

    stream = h
    if HAS_STEERING:
        active = (slot >= 0) & ((delta_row >= 0) | (read_count > 0)) & (gain != 0.0)
        # One branch for the whole of it: an inactive row reads no bank and keeps the bits of h.
        if active:
            wide = h.to(tl.float32)
            root = 0.0
            lift = 1.0
            if (finish > NONE) | (read_count > 0):
                root, lift = length_of(wide)
            if HAS_READS:
                if read_count > 0:
                    program_ptr = reads_ptr + program.to(tl.int64) * (MAX_READS * READ_WIDTH)
                    added = contribution(
                        delta_row,
                        wide,
                        tl.div_rn(root, lift),
                        program_ptr,
                        read_count,
                        bank_ptr,
                        bank_stride,
                        columns,
                        D,
                        ALIGNMENT,
                    )
                else:
                    added = bank_row(bank_ptr, bank_stride, delta_row, columns, D, ALIGNMENT)
            else:
                added = bank_row(bank_ptr, bank_stride, delta_row, columns, D, ALIGNMENT)
            y = wide + gain * added
            if finish > NONE:
                y = finished(y, root, lift, finish)
            stream = y.to(h.dtype)

    stream_row_ptr = tl.multiple_of(stream_ptr + row * stream_stride, ALIGNMENT)
    if HAS_NORM:
        if HAS_READS:
            weight = tl.load(weights_ptr, mask=inside, other=0.0)
        wide = stream.to(tl.float32)
        mean = tl.div_rn(tl.sum(wide * wide), D * 1.0)
        # In place, both stores must come after this sum: its barrier (within one warp, its shuffles)
        # is what makes sure that every thread has read its part of residual and x.
        tl.store(stream_row_ptr + columns, stream, mask=inside)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(mean + tl.cast(eps, tl.float32)))
        unit = wide * rstd
        if not FP32_NORM:
            unit = unit.to(h.dtype).to(tl.float32)
        normed = weight.to(tl.float32) * unit
        normed_row_ptr = tl.multiple_of(normed_ptr + row * normed_stride, ALIGNMENT)
        tl.store(normed_row_ptr + columns, normed.to(weight.dtype), mask=inside)
    else:
        tl.store(stream_row_ptr + columns, stream, mask=inside)


def row_alignment(D: int, element_size: int) -> int:
    """What the addresses of all rows must divide by, in bytes: 16 where contiguous rows do, else 1."""
    return 16 if D * element_size % 16 == 0 else 1


def launch(
    x: Tensor | None,
    residual: Tensor,
    stream: Tensor,
    weight: Tensor | None,
    normed: Tensor | None,
    eps: float,
    fp32_norm: bool,
    steering: Steering | None,
    config: Config,
) -> None:
    """Residual add, steering and RMSNorm of N rows; one program a row.

        h      = round_T(residual + x)                                  # residual where x is None
        y      = h + gain[n] * (delta + sum_i gate_i * u_i(h))          # float32; of record row_slot[n]
        stream = round_T(finish(y))          # finish: none | |h|/|y| | min(1, |h|/|y|)
        normed = round(weight * round_T(stream * 1/sqrt(mean(stream^2) + eps)))   # fp32_norm: one rounding

    x, residual, stream: [N, D] of dtype T (float32 | bfloat16 | float16), rows at any stride, the last
    dimension contiguous. weight [D], of dtype T or float32, and normed [N, D] of weight's dtype come
    together. Contiguous: row_slot [N] int32, row_gain [N] float32, records [S, 4] int32, reads
    [P, 16, 12] int32, bank [V, D] float32. stream may be residual, and normed may be x. All on the
    current device, and addresses and strides in bytes divisible by ``row_alignment``. The kernel does not
    check that slots, programs and bank rows are in range.
    """
    N, D = residual.shape
    if N == 0 or D == 0:
        return
    row_slot, row_gain, records, reads, bank = steering or (None, None, None, None, None)
    # A table without room for programs gets a kernel without them, which needs fewer registers.
    has_reads = reads is not None and reads.shape[0] > 0
    steer_add_rms_norm_kernel[(N,)](
        x,
        0 if x is None else x.stride(0),
        residual,
        residual.stride(0),
        stream,
        stream.stride(0),
        weight,
        normed,
        0 if normed is None else normed.stride(0),
        eps,
        row_slot,
        row_gain,
        records,
        0 if records is None else records.stride(0),
        reads if has_reads else None,
        bank,
        0 if bank is None else bank.stride(0),
        D=D,
        BLOCK_D=config.BLOCK_D,
        ALIGNMENT=row_alignment(D, residual.element_size()),
        HAS_X=x is not None,
        HAS_STEERING=steering is not None,
        HAS_READS=has_reads,
        HAS_NORM=weight is not None,
        FP32_NORM=fp32_norm,
        **config.options,
    )
