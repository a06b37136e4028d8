"""Where the parts of a model are: whole on one device, or offloaded, with weights on meta between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from steerfast.errors import SteerfastError

_META = torch.device("meta")


def input_device(decoder: Any) -> torch.device | None:
    """Where a decoder takes its ids: where its embedding is, or runs if it is offloaded; None where nothing says.

    An embedding need not have a weight of that name (a soft prompt's has others), or any.
    """
    embedding: nn.Module = decoder.embed_tokens
    weight = embedding._parameters.get("weight")
    if weight is None:
        weight = next(embedding.parameters(), None)
    if weight is not None and weight.device != _META:
        return weight.device
    for part in (embedding, decoder):  # accelerate's hooks
        at = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if at is not None:
            return torch.device(at)
    return None


def check_one_device(decoder: Any, path: str) -> None:
    """SteerfastError for layers on several devices: the plans are on one."""
    places: dict[torch.device, str] = {}
    for index, layer in enumerate(decoder.layers):
        for parameter in layer.parameters():
            if parameter.device != _META:
                places.setdefault(parameter.device, f"{path}layers.{index}")
    if len(places) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise SteerfastError(
            f"the layers are on {len(places)} devices (from {where}), and plans are kept on one; load the model on one device "
            "(device_map={'': 0}), or serve it with vLLM's tensor or pipeline parallel"
        )
