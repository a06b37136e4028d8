"""The fused operators: ``torch.ops.steerfast.*``, and the ops that dispatch to a backend through them.

The schemas always exist: the reference implements them for every device, and a compiled library, once
loaded, takes over its own device. Inputs that require grad go through the reference, which is
differentiable; the compiled kernels are for inference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerfast.ops import backends, reference
from steerfast.ops.arguments import explain
from steerfast.ops.forms import SCHEMAS, Parts, flat
from steerfast.ops.interface import Ops


def _without_data(parts: Parts) -> tuple[Tensor, Tensor | None]:
    """Shapes and dtypes of the results. Real and meta tensors in one call land here too, so it checks."""
    explain(parts)
    shape = parts.residual.shape
    stream = parts.residual.new_empty(shape)
    if parts.weight is None:
        return stream, None
    return stream, stream.new_empty(shape, dtype=parts.weight.dtype)


_fakes = flat(_without_data, write=explain, write_halves=explain)
# The library object owns the registrations, so it lives as long as the module.
_library: Any = torch.library.Library("steerfast", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, reference.FLAT[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"steerfast::{_name}", _fakes[_name], lib=_library)
backends.load()

_ops = Ops(
    {name: getattr(torch.ops.steerfast, name).default for name in SCHEMAS},
    differentiable=reference.FLAT,
)
add_rms_norm, add_rms_norm_ = _ops.add_rms_norm, _ops.add_rms_norm_
steer, steer_, steer_halves_ = _ops.steer, _ops.steer_, _ops.steer_halves_
steer_add, steer_rms_norm = _ops.steer_add, _ops.steer_rms_norm
steer_add_rms_norm, steer_add_rms_norm_ = _ops.steer_add_rms_norm, _ops.steer_add_rms_norm_
