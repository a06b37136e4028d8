"""Directions of attention heads (ITI) as what they add to the residual stream.

A head's output x goes through o_proj, which is linear: W (x + c d) = W x + c W d. So adding c d to the heads' outputs is
adding c W d at ``resid_mid``, exactly, where nothing stands between o_proj and the stream (no norm behind attention, as
Gemma 2 and 3, OLMo 2 and 3 and GLM-4 have).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.io.formats.found import layer_number, real
from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector

FACTS = {
    "format": "directions of attention heads",
    "layer_convention": "the attention of layer l, layers from 0, through its o_proj: resid_mid of layer l",
}


def from_heads(
    directions: Mapping[int, Any],
    model: nn.Module,
    *,
    name: str = "heads",
    coefficient: float = 1.0,
) -> Plan:
    """A plan that adds what head directions come to at ``resid_mid``.

    directions: {layer: [H, d]} or {layer: [H * d]}, one direction a query head, zeros for heads that are left alone.
    model: the one that they are of, unquantised; its o_proj are read. The plan's vector has the [D] products, and belongs
    at that site only.

    ValueError for a model with a norm behind its attention, weights that are no plain matrix, or sizes that do not fit.
    """
    layers = _layers(model)
    products: dict[int, Tensor] = {}
    for number, given in directions.items():
        at = layer_number(number, "a direction of heads")
        if at >= len(layers):
            raise ValueError(
                f"directions of heads name layer {at}; the model has layers 0 to {len(layers) - 1}"
            )
        weight = _weight(layers[at], at)
        heads = real(torch.as_tensor(given), f"the directions of layer {at}").reshape(-1)
        if len(heads) != weight.shape[1]:
            raise ValueError(
                f"the directions of layer {at} have {len(heads)} values; the heads of the model have {weight.shape[1]}"
            )
        products[at] = weight.double() @ heads.double()
    vector = SteeringVector(name, products, provenance=FACTS)
    return Plan((Term(vector, coefficient, site="resid_mid"),))


def _layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, wherever they hang."""
    for path in (
        "model.layers",
        "model.language_model.layers",
        "language_model.model.layers",
        "layers",
    ):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return list(found)
    raise ValueError(
        f"{type(model).__name__} has no model.layers; directions of heads are read through those"
    )


def _weight(layer: nn.Module, at: int) -> Tensor:
    behind = hasattr(layer, "pre_feedforward_layernorm") or hasattr(
        layer, "post_self_attn_layernorm"
    )
    if behind or not hasattr(layer, "input_layernorm"):
        raise ValueError(
            f"layer {at} ({type(layer).__name__}) has a norm behind its attention, so that what a head adds depends on the "
            "token; its head directions have no equivalent at resid_mid"
        )
    project = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    weight = getattr(project, "weight", None)
    if (
        not isinstance(project, nn.Linear)
        or weight is None
        or weight.ndim != 2
        or not weight.is_floating_point()
    ):
        raise ValueError(
            f"layer {at} has no self_attn.o_proj with a plain weight (quantised, or of another architecture)"
        )
    return weight.detach().to("cpu")  # type: ignore[no-any-return]
