"""What ``attach`` demands of a model before it changes anything."""

from __future__ import annotations

from typing import Any

from torch import nn

from steerfast.decoders.find import Decoder
from steerfast.errors import SteerfastError
from steerfast.models.rebind import standing_in


def check_decoder(decoder: Decoder) -> None:
    """SteerfastError naming the first part that is attached already, stands in two places, or runs another library's forward."""
    layers, path = decoder.layers, decoder.layers_path
    for index, layer in enumerate(layers):
        _check_layer(layer, f"{path}{index}")
    for index, layer in enumerate(layers):
        if any(layer is other for other in layers[:index]):
            raise SteerfastError(
                f"{path}{index} is the same object as an earlier layer; a site is a place, so each layer must be its own"
            )


def check_peft(model: Any) -> None:
    """SteerfastError for prompt learning of PEFT: it swaps methods of the model in every ``generate``,
    and its virtual tokens have positions that no mask shows."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise SteerfastError(
            f"cannot steer a model under PEFT's {type(config).__name__}: its virtual tokens are in no mask; "
            "LoRA and other adapters of weights are fine"
        )


def _check_layer(layer: nn.Module, path: str) -> None:
    if standing_in(layer) is not None:
        raise SteerfastError(
            "this model is attached already (or a copy of one that was); use its handle, or detach it: "
            "steerfast.handle_of(model).detach()"
        )
    if "forward" in layer.__dict__ and not hasattr(layer, "_hf_hook"):
        raise SteerfastError(
            f"{path}.forward was replaced by another library ({layer.__dict__['forward']!r}); undo "
            "that first, or let it wrap the model after attach"
        )
