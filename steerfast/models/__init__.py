"""``attach``: patch a Llama so that its layers steer. The layer itself is in ``models.llama``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from steerfast import backends
from steerfast.errors import SteerfastError
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.generation import SteeredGenerate, SteeredPrepare
from steerfast.models.handle import Handle, Report, Use
from steerfast.models.llama import SteeredLayer, SteeredModel, SteeredNorm
from steerfast.models.rebind import Rebindings
from steerfast.table import Table

__all__ = ["Handle", "Report", "Use", "attach", "find_decoder"]


def attach(
    model: nn.Module, *, slots: int = 64, bank_rows: int | None = None, backend: str | None = None
) -> Handle:
    """Patch a Llama of transformers in place; ``handle.detach()`` undoes it exactly.

    model: a ``LlamaForCausalLM``, ``LlamaModel`` or anything that contains one (PEFT, a classifier).
    slots: how many phases of plans can be in use at once (a plan that tells prompt from generated
        tokens takes two). bank_rows: room for deltas, one per phase and steered site; default
        ``slots * (layers + 1)``. Both are fixed, so that compiled code and graphs never move.
    backend: cuda | triton | cpu | reference; None or "auto" takes the best there is.

    The model then behaves as before (bitwise in the residual stream) until ``handle.use(plan)``.
    Raises TypeError for something that is no module, SteerfastError for a model that is no Llama, is
    attached already, or has layers that another library replaced. Nothing is changed then.
    """
    decoder, path = find_decoder(model)
    layers = list(decoder.layers)
    for index, layer in enumerate(layers):
        _check_layer(layer, f"{path}layers.{index}")
    device = layers[0].input_layernorm.weight.device
    if device.type == "meta":  # offloaded: the table follows the first input
        device = torch.device("cpu")
    chosen = backends.resolve(backend, device)
    hidden_size = int(decoder.config.hidden_size)
    table = Table(len(layers), hidden_size, slots=slots, bank_rows=bank_rows, device=device)
    shared = ForwardPass(table, chosen)
    rebindings = Rebindings()
    handle = Handle(model, shared, rebindings, str(getattr(decoder.config, "_name_or_path", "")))

    steered = [SteeredLayer(layer, index, shared) for index, layer in enumerate(layers)]
    for index, (layer, ours) in enumerate(zip(layers, steered, strict=True)):
        rebindings.rebind(
            layer, f"{path}layers.{index}", "forward", partial(_replace, ours.forward)
        )
    norm: nn.Module = decoder.norm
    rebindings.rebind(
        norm, f"{path}norm", "forward", lambda old: SteeredNorm(norm, shared, old).forward
    )
    rebindings.rebind(
        decoder,
        path.rstrip(".") or "model",
        "forward",
        lambda old: SteeredModel(decoder, shared, old).forward,
    )
    for here, following in zip(steered, layers[1:], strict=False):
        here.next_layer, here.next_norm = following, following.input_layernorm
        here.next_forward = following.__dict__.get("forward")
    steered[-1].next_norm, steered[-1].next_norm_forward = norm, norm.__dict__.get("forward")

    for name, module in model.named_modules():
        if _generates(module) and any(child is decoder for child in module.modules()):
            rebindings.rebind(
                module, name or "model", "generate", lambda old: SteeredGenerate(shared, old)
            )
            rebindings.rebind(
                module,
                name or "model",
                "prepare_inputs_for_generation",
                lambda old: SteeredPrepare(shared, old),
            )
    return handle


def find_decoder(model: Any) -> tuple[Any, str]:
    """The one LlamaModel inside ``model`` and its path (empty, or ending in a dot).

    Raises TypeError for something that is no module, SteerfastError if there is none or more than one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach takes a torch module, got {type(model).__name__}")
    from transformers.models.llama.modeling_llama import LlamaModel

    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LlamaModel)
    ]
    if not found:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        what = f"model_type {kind!r} ({type(model).__name__})" if kind else type(model).__name__
        raise SteerfastError(f"cannot steer {what}; known: llama (transformers' LlamaModel)")
    if len(found) > 1:
        raise SteerfastError(
            f"found {len(found)} Llamas ({', '.join(name or 'the model' for name, _ in found)}); attach one of them"
        )
    name, decoder = found[0]
    return decoder, f"{name}." if name else ""


def _replace(ours: Any, original: Any) -> Any:
    return ours


def _check_layer(layer: nn.Module, path: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

    mine = layer.__dict__.get("_old_forward") if hasattr(layer, "_hf_hook") else None
    for current in (layer.__dict__.get("forward"), mine):
        if isinstance(getattr(current, "__self__", None), SteeredLayer):
            raise SteerfastError(
                "this model is attached already; use its handle, or detach it first"
            )
    if (
        not isinstance(layer, LlamaDecoderLayer)
        or type(layer).forward is not LlamaDecoderLayer.forward
    ):
        raise SteerfastError(
            f"{path} is a {type(layer).__name__} with its own forward; known: LlamaDecoderLayer of transformers"
        )
    if "forward" in layer.__dict__ and not hasattr(layer, "_hf_hook"):
        raise SteerfastError(
            f"{path}.forward was replaced by another library ({layer.__dict__['forward']!r}); undo that first"
        )
    for name in ("input_layernorm", "post_attention_layernorm"):
        norm = getattr(layer, name, None)
        if not isinstance(norm, LlamaRMSNorm) or type(norm).forward is not LlamaRMSNorm.forward:
            raise SteerfastError(
                f"{path}.{name} is {type(norm).__name__}; only LlamaRMSNorm's formula is fused here"
            )


def _generates(module: nn.Module) -> bool:
    from transformers import GenerationMixin

    return isinstance(module, GenerationMixin)
