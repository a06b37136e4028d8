"""Where the layers of a model are: on one device, for plans are on one."""

from __future__ import annotations

import torch

from steerfast.decoders.find import META, Decoder
from steerfast.errors import SteerfastError


def check_one_device(decoder: Decoder) -> None:
    """SteerfastError for layers on several devices: the plans are on one."""
    places: dict[torch.device, str] = {}
    for index, layer in enumerate(decoder.layers):
        for parameter in layer.parameters():
            if parameter.device != META:
                places.setdefault(parameter.device, f"{decoder.layers_path}{index}")
    if len(places) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise SteerfastError(
            f"the layers are on {len(places)} devices (from {where}), and plans are kept on one; load the model on one device "
            "(device_map={'': 0}), or serve it with vLLM's tensor or pipeline parallel"
        )
