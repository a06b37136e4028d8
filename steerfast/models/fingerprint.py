"""Which model it is, by its weights: a folder's name says little, and one model has many."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.find import find_decoder

SAMPLED = 64  # values of each weight, evenly spread
# Of the layers and the norm behind them; not embeddings, which are resized for a pad token, nor what adapters add.
_NORM = re.compile(r"(\w*norm\w*|ln_f)\.weight")
_ADDED = re.compile(r"\b(lora|vera|hada|ia3|oft|boft|modules_to_save|adapter|prompt)\w*\.")
_WRAPPED = re.compile(r"\.(base_layer|original_module)\b")  # PEFT, around a weight of the model
# Both precisions are what float32 is rounded to, so that a model is known in each of them.
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def fingerprint(model: Any, precision: str | None = None) -> str | None:
    """``bfloat16:`` or ``float16:`` and a SHA-256 of names, shapes and 64 values of each layer's weights, so rounded.

    The same for a model in float32 and in bfloat16, from a folder, a GGUF file or the hub, with LoRA beside its weights;
    another for a model that was trained on or pruned. precision: the rounding; by default float16 for a float16 model,
    else bfloat16. None where the weights cannot tell: quantised, offloaded or sharded ones, or rounded otherwise.
    """
    weights = _weights(model)
    kinds = {weight.dtype for weight in weights.values()}
    lossy = kinds & set(_PRECISIONS.values())
    if precision is None:
        precision = "float16" if torch.float16 in lossy else "bfloat16"
    wanted = _PRECISIONS.get(precision)
    if not weights or wanted is None or not lossy <= {wanted}:
        return None
    if not kinds <= {torch.float32, torch.float64, wanted}:
        return None
    digest, values = hashlib.sha256(), []
    for name, weight in sorted(weights.items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        values.append(flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].to(wanted))
    devices = {value.device for value in values}  # a copy from each, not one for each weight
    here = {
        device: torch.cat([value for value in values if value.device == device]).cpu()
        for device in devices
    }
    for device in dict.fromkeys(value.device for value in values):
        digest.update(here[device].view(torch.uint8).numpy().tobytes())
    return f"{precision}:{digest.hexdigest()[:32]}"


def same_weights(recorded: object, model: Any) -> bool | None:
    """Whether a recorded fingerprint is that of ``model``; None where there is no telling."""
    if not isinstance(recorded, str):
        return None
    mine = fingerprint(model, recorded.partition(":")[0])
    return None if mine is None else mine == recorded


def _weights(model: Any) -> dict[str, Tensor]:
    """{name in a stock model: weight} of every layer and the last norm; none if one of them is not an ordinary tensor."""
    decoder = find_decoder(model)
    found = {}
    for name, weight in decoder.module.named_parameters():
        stock = _WRAPPED.sub("", name)
        of_layer = stock.startswith(f"{decoder.layers_name}.") and stock.endswith(".weight")
        if not (of_layer or _NORM.fullmatch(stock)) or _ADDED.search(stock):
            continue
        if weight.device.type == "meta" or not weight.is_floating_point():
            return {}
        if hasattr(weight, "device_mesh"):  # a shard of a weight
            return {}
        found[stock] = weight
    # Quantised weights need not be called weights, but they are integers.
    parts = (tensor for layer in decoder.layers for tensor in layer.state_dict().values())
    if any(not part.is_floating_point() for part in parts):
        return {}
    return found
