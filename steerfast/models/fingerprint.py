"""Which model it is, by its weights: a folder's name says little, and one model has many."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from steerfast.models.checks import find_decoder

SAMPLED = 64  # values of each weight, evenly spread
_PROJECTIONS, _NORMS = 7, 2  # of a layer
# Of a stock Llama; not embeddings, which are resized for a pad token, nor what adapters add.
_WEIGHT = re.compile(
    r"layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight|(layers\.\d+\.\w+)?norm\.weight"
)
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
    """{name in a stock Llama: weight} of every layer and the last norm; none if one of them is not an ordinary tensor."""
    decoder, _ = find_decoder(model)
    found = {}
    for name, weight in decoder.named_parameters():
        stock = _WRAPPED.sub("", name)
        if not _WEIGHT.fullmatch(stock):
            continue
        if weight.device.type == "meta" or not weight.is_floating_point():
            return {}
        if hasattr(weight, "device_mesh"):  # a shard of a weight
            return {}
        found[stock] = weight
    whole = len(found) == len(decoder.layers) * (_PROJECTIONS + _NORMS) + 1
    return found if whole else {}
