"""Lengths of rows whose squares float32 may not hold, in Triton. No kernel here. ``csrc/lengths.h`` is the same in C++."""

import triton
import triton.language as tl

from steerfast.ops.records import FINISH_CODES

SHRINK = tl.constexpr(FINISH_CODES["shrink"])
# A sum of squares below LEAST may have lost digits to subnormals, one above MOST is infinite. Elements are then
# multiplied by RAISE or LOWER before they are squared.
LEAST = tl.constexpr(2.0**-96)
MOST = tl.constexpr((2.0 - 2.0**-23) * 2.0**127)
RAISE = tl.constexpr(2.0**100)
LOWER = tl.constexpr(2.0**-80)


@triton.jit
def length_of(wide):
    """(root, lift): |wide| is root / lift, both float32."""
    squares = tl.sum(wide * wide)
    lift = 1.0
    if (squares < LEAST) | (squares > MOST):
        lift = tl.where(squares < LEAST, RAISE, LOWER)
        lifted = wide * lift
        squares = tl.sum(lifted * lifted)
    return tl.sqrt_rn(squares), lift


@triton.jit
def finished(y, before, before_lift, finish):
    """y times |h|/|y|, at most 1 for shrink, 1 where |y| is 0 or not finite. before, before_lift: ``length_of`` h."""
    after, after_lift = length_of(y)
    there = (after > 0.0) & (after <= MOST)
    factor = tl.where(there, tl.div_rn(before, after), 1.0)
    far = ((before_lift != 1.0) | (after_lift != 1.0)) & there
    if far:  # |h|/|y| may leave float32 too, so y is multiplied twice by its root
        lifts = tl.div_rn(tl.sqrt_rn(after_lift), tl.sqrt_rn(before_lift))
        factor = tl.sqrt_rn(factor) * lifts
    # Not tl.minimum, which would turn NaN into 1.
    factor = tl.where((finish == SHRINK) & (factor > 1.0), 1.0, factor)
    y = y * factor
    if far:
        y = y * factor
    return y
