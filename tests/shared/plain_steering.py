"""What a direction does, by plain forward hooks on a transformers model: no code of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOKENS = torch.tensor([[5, 9, 2, 7, 11, 3]])


def logits_with(
    model: Any,
    outputs: Mapping[int, Tensor] | None = None,
    inputs: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Logits of TOKENS with directions added to the outputs, or to the inputs, of decoder layers."""
    hooks = [
        model.model.layers[layer].register_forward_hook(lambda module, args, out, v=v: out + v)
        for layer, v in (outputs or {}).items()
    ]
    hooks += [
        model.model.layers[layer].register_forward_pre_hook(
            lambda module, args, v=v: (args[0] + v, *args[1:])
        )
        for layer, v in (inputs or {}).items()
    ]
    try:
        with torch.no_grad():
            return model(TOKENS).logits
    finally:
        for hook in hooks:
            hook.remove()


def steered_logits(model: Any, plan: Any) -> Tensor:
    """Logits of TOKENS under a plan of ours."""
    from steerfast import attach

    with attach(model) as handle, handle.use(plan), torch.no_grad():
        return model(TOKENS).logits
