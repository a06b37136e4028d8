"""What ``attach`` demands of a model before it changes anything.

A patched model runs transformers' own attention and MLP but our order of norms and additions, so every
piece that is stood in for must be the one that is known: by class and by function, found by where its
source stands, since a library that patches transformers replaces the names in its modules.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from steerfast.errors import SteerfastError
from steerfast.models.rebind import standing_in

_HOME = "transformers.models.llama.modeling_llama"


def find_decoder(model: Any) -> tuple[Any, str]:
    """The one LlamaModel inside ``model`` and its path (empty, or ending in a dot).

    Raises TypeError for something that is no module, SteerfastError if there is none or more than one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach takes a torch module, got {type(model).__name__}")
    from transformers.models.llama.modeling_llama import LlamaModel

    found = [(name, part) for name, part in model.named_modules() if isinstance(part, LlamaModel)]
    if not found:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        what = f"model_type {kind!r} ({type(model).__name__})" if kind else type(model).__name__
        raise SteerfastError(f"cannot steer {what}; known: llama (transformers' LlamaModel)")
    if len(found) > 1:
        paths = ", ".join(name or "the model itself" for name, _ in found)
        raise SteerfastError(f"found {len(found)} Llamas ({paths}); attach one of them")
    name, decoder = found[0]
    return decoder, f"{name}." if name else ""


def check_decoder(decoder: Any, path: str) -> None:
    """SteerfastError naming the first part that is not transformers' own."""
    layers = list(decoder.layers)
    for index, layer in enumerate(layers):
        _check_layer(layer, f"{path}layers.{index}")
    for index, layer in enumerate(layers):
        if any(layer is other for other in layers[:index]):
            raise SteerfastError(
                f"{path}layers.{index} is the same object as an earlier layer; a site is a place, so "
                "each layer must be its own"
            )
    _check_class(decoder, "LlamaModel", path.rstrip(".") or "the model")
    _check_norm(decoder.norm, f"{path}norm")


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
    _check_class(layer, "LlamaDecoderLayer", path)
    if "forward" in layer.__dict__ and not hasattr(layer, "_hf_hook"):
        raise SteerfastError(
            f"{path}.forward was replaced by another library ({layer.__dict__['forward']!r}); undo "
            "that first, or let it wrap the model after attach"
        )
    for name in ("input_layernorm", "post_attention_layernorm"):
        _check_norm(getattr(layer, name, None), f"{path}.{name}")


def _check_norm(norm: Any, path: str) -> None:
    """transformers' own, which kernels may compute; or PEFT's around one, which is called as the module that it is."""
    if not type(norm).__module__.startswith("peft."):
        _check_class(norm, "LlamaRMSNorm", path)


def _check_class(part: Any, wanted: str, path: str) -> None:
    kind = type(part)
    forward = inspect.unwrap(kind.forward) if hasattr(kind, "forward") else None
    code = getattr(forward, "__code__", None)
    home = inspect.getsourcefile(code) or "" if code is not None else ""
    own_class = kind.__module__ == _HOME and kind.__qualname__ == wanted
    own_forward = getattr(forward, "__qualname__", "") == f"{wanted}.forward"
    if own_class and own_forward and home.endswith("modeling_llama.py"):
        return
    found = f"{kind.__module__}.{kind.__qualname__}"
    if own_class:
        found += f" with a forward from {home or forward!r}"
    raise SteerfastError(f"{path} is {found}; only transformers' own {wanted} is known here")
