"""The fused ops: residual add, steering and RMSNorm in one pass.

``reference`` is the definition, in plain torch; ``fused`` runs compiled kernels (C++, CUDA) where they were built and the
reference elsewhere; ``triton`` is a third implementation. All three have the functions below, whose signatures and
meaning stand in ``interface``, and mean the same.
"""

from steerfast.ops.forms import NormOrder
from steerfast.ops.fused import (
    add_rms_norm,
    add_rms_norm_,
    steer,
    steer_,
    steer_add,
    steer_add_rms_norm,
    steer_add_rms_norm_,
    steer_halves_,
    steer_rms_norm,
)
from steerfast.ops.records import Steering

__all__ = [
    "NormOrder",
    "Steering",
    "add_rms_norm",
    "add_rms_norm_",
    "steer",
    "steer_",
    "steer_add",
    "steer_add_rms_norm",
    "steer_add_rms_norm_",
    "steer_halves_",
    "steer_rms_norm",
]
