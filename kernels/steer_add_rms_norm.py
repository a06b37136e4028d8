"""The additive family in Triton: one kernel behind all seven ops of ``steerfast.ops``.

Rounding points are those of ``steerfast/reference.py``. Nothing here allocates, checks or chooses;
``steerfast/triton_ops.py`` does.
"""

from dataclasses import dataclass
from functools import cache

import triton
import triton.language as tl
from torch import Tensor

from steerfast.reference import FINISH_CODES, Steering

NONE = tl.constexpr(FINISH_CODES["none"])
SHRINK = tl.constexpr(FINISH_CODES["shrink"])


@dataclass(frozen=True)
class Config:
    """How the kernel is cut for rows of D elements.

    Takes no row count: num_warps decides the order of summation, and a row's result must not depend
    on its batch.
    """

    BLOCK_D: int
    num_warps: int

    @classmethod
    @cache
    def for_width(cls, D: int) -> "Config":
        """16 elements a thread from 512 on: 16-byte accesses, and few enough registers.

        Measured with ptxas: 54 to 75 for D = 576 to 16384 in bfloat16 and float32 on sm_80, sm_90 and
        sm_100, without spills. Not timed on a GPU.
        """
        block = triton.next_power_of_2(D)
        return cls(BLOCK_D=block, num_warps=min(max(block // 512, 1), 32))

    @property
    def options(self) -> dict[str, int | bool]:
        """Compile options. Without fusion gain * delta is rounded before the sum, as in the reference;
        the default differs between Triton versions. The interpreter drops both.
        """
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}


@triton.jit
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
    bank_ptr,
    bank_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_X: tl.constexpr,
    HAS_STEERING: tl.constexpr,
    HAS_NORM: tl.constexpr,
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

    h = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0)
    if HAS_X:
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
        h = (h.to(tl.float32) + x.to(tl.float32)).to(h.dtype)
    if HAS_NORM:
        weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)

    stream = h
    if HAS_STEERING:
        active = (slot >= 0) & (delta_row >= 0) & (gain != 0.0)
        # One branch for the whole program: an inactive row reads no delta and keeps the bits of h.
        if active:
            delta_offset = delta_row.to(tl.int64) * bank_stride
            delta = tl.load(bank_ptr + delta_offset + columns, mask=inside, other=0.0)
            y = h.to(tl.float32) + gain * delta
            if finish > NONE:
                before = tl.sqrt_rn(tl.sum(h.to(tl.float32) * h.to(tl.float32)))
                after = tl.sqrt_rn(tl.sum(y * y))
                factor = tl.where(after > 0.0, tl.div_rn(before, after), 1.0)
                # Not tl.minimum, which would turn NaN into 1.
                factor = tl.where((finish == SHRINK) & (factor > 1.0), 1.0, factor)
                y = y * factor
            stream = y.to(h.dtype)

    stream_row_ptr = stream_ptr + row * stream_stride
    if HAS_NORM:
        wide = stream.to(tl.float32)
        mean = tl.div_rn(tl.sum(wide * wide), D * 1.0)
        # In place, both stores must come after this sum: its barrier (within one warp, its shuffles)
        # is what makes sure that every thread has read its part of residual and x.
        tl.store(stream_row_ptr + columns, stream, mask=inside)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(mean + tl.cast(eps, tl.float32)))
        unit = (wide * rstd).to(h.dtype)
        normed = weight.to(tl.float32) * unit.to(tl.float32)
        normed_row_ptr = normed_ptr + row * normed_stride
        tl.store(normed_row_ptr + columns, normed.to(weight.dtype), mask=inside)
    else:
        tl.store(stream_row_ptr + columns, stream, mask=inside)


def launch(
    x: Tensor | None,
    residual: Tensor,
    stream: Tensor,
    weight: Tensor | None,
    normed: Tensor | None,
    eps: float,
    steering: Steering | None,
    config: Config,
) -> None:
    """Residual add, steering and RMSNorm of N rows; one program a row.

        h      = round_T(residual + x)                                  # residual where x is None
        y      = h + gain[n] * bank[records[row_slot[n]].delta]         # float32
        stream = round_T(finish(y))          # finish: none | |h|/|y| | min(1, |h|/|y|)
        normed = round(weight * round_T(stream * 1/sqrt(mean(stream^2) + eps)))

    x, residual, stream: [N, D] of dtype T (float32 | bfloat16 | float16), rows at any stride, the last
    dimension contiguous. weight [D], of dtype T or float32, and normed [N, D] of weight's dtype come
    together. Contiguous: row_slot [N] int32, row_gain [N] float32, records [S, 4] int32, bank [V, D]
    float32. With a norm, stream may be residual and normed may be x. All on the current device. The
    kernel does not check that slots are below S and delta rows below V.
    """
    N, D = residual.shape
    if N == 0 or D == 0:
        return
    row_slot, row_gain, records, bank = steering or (None, None, None, None)
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
        bank,
        0 if bank is None else bank.stride(0),
        D=D,
        BLOCK_D=config.BLOCK_D,
        HAS_X=x is not None,
        HAS_STEERING=steering is not None,
        HAS_NORM=weight is not None,
        **config.options,
    )
