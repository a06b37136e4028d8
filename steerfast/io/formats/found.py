"""What a reader hands back before it is a vector: directions under the file's own numbers, and what it says beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steerfast.io.formats.layers import Convention, LayersAre, to_outputs
from steerfast.plans.vector import SteeringVector

MOST_LAYERS = 1024  # no model has as many; a greater number is a fault of the file
MOST_VALUES = 2**28  # of one vector: 1 GiB of float32


@dataclass(frozen=True)
class Found:
    """format: its name, as ``inspect`` shows it. numbered: {number in the file: [D] or [T, D]}. says: name, stream norms
    (by our layers) and provenance, where the format has a place for them."""

    format: str
    convention: Convention
    numbered: Mapping[int, Tensor]
    name: str | None = None
    stream_norms: Mapping[int, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def vector(self, name: str, layers_are: LayersAre | None, what: str) -> SteeringVector:
        """The vector, with layers by our convention. name: where the file has none."""
        directions, says = to_outputs(self.numbered, self.convention, layers_are, what)
        # Of this file; what it was converted from before is told by nothing but what else its provenance says.
        provenance = {**self.provenance, "format": self.format, **says}
        return SteeringVector(self.name or name, directions, self.stream_norms, provenance)


def real(tensor: Tensor, what: str) -> Tensor:
    """The tensor as float32 on the CPU, each value stored once. ValueError for other layouts, for numbers that are not
    real, and where a shape claims more values than there are (a stride of 0 makes a terabyte of four bytes)."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ValueError(
            f"{what} is {tensor.layout} on {tensor.device}; a direction is a plain tensor"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"{what} is {tensor.dtype}; a direction holds real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{what} claims the shape {list(tensor.shape)}, which is more than is stored"
        )
    if tensor.numel() > MOST_VALUES:
        raise ValueError(f"{what} has {tensor.numel()} values; a vector has at most {MOST_VALUES}")
    return tensor.detach().to("cpu", torch.float32).clone()


def rows(tensor: Tensor, what: str) -> dict[int, Tensor]:
    """{number: [D]} of an [L, D] tensor."""
    if tensor.ndim != 2 or not 0 < len(tensor) <= MOST_LAYERS:
        raise ValueError(
            f"{what} has the shape {list(tensor.shape)}; directions by layer are [layers, hidden size], with 1 to "
            f"{MOST_LAYERS} layers"
        )
    return dict(enumerate(tensor))


def layer_number(value: object, what: str) -> int:
    """The value if it can be a layer's number."""
    if type(value) is not int or not 0 <= value < MOST_LAYERS:
        raise ValueError(
            f"{what} names layer {value!r:.40}; layers are whole numbers from 0 to {MOST_LAYERS - 1}"
        )
    return value
