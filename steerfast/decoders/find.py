"""Which part of a model is its decoder, and where its layers are; by structure, not by name of class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steerfast.errors import SteerfastError

META = torch.device("meta")
_STREAMS = ("hidden_states", "hidden_state", "hidden", "x", "activations")


@dataclass(frozen=True)
class Decoder:
    """module: takes ``input_ids`` and runs ``layers`` one after another. path: of the module in the model, empty or ending
    in a dot. layers_name: of the list in the module (``layers``, ``h``)."""

    module: Any
    path: str
    layers_name: str

    @property
    def layers(self) -> list[nn.Module]:
        """As they are now."""
        return list(self.module.get_submodule(self.layers_name)._modules.values())

    @property
    def layers_path(self) -> str:
        """``model.layers.``: a layer's number follows."""
        return f"{self.path}{self.layers_name}."

    @property
    def config(self) -> Any:
        """Of the text model."""
        return self.module.config

    @property
    def embedding(self) -> nn.Module:
        """What turns ids into the first stream."""
        return self.module.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        """D, the width of the stream."""
        return int(self.config.hidden_size)


def find_decoder(model: Any) -> Decoder:
    """The one decoder inside ``model``: a module of transformers that takes ``input_ids`` and holds a list of layers.

    Raises TypeError for something that is no module, SteerfastError if there is none or more than one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach takes a torch module, got {type(model).__name__}")
    found = list(_decoders(model))
    if len(found) > 1:
        found = _the_one_of(model, found)
    if not found:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        what = f"model_type {kind!r} ({type(model).__name__})" if kind else type(model).__name__
        raise SteerfastError(
            f"cannot steer {what}: nothing in it takes input_ids and holds a list of layers, as the decoders of transformers "
            "do; see docs/models.md"
        )
    if len(found) > 1:
        paths = ", ".join(one.path.rstrip(".") or "the model itself" for one in found)
        raise SteerfastError(f"found {len(found)} decoders ({paths}); attach one of them")
    return found[0]


def _decoders(model: nn.Module) -> Iterator[Decoder]:
    from transformers import PreTrainedModel

    for name, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and _takes_ids(part):
            layers = _layers_of(part)
            if layers is not None:
                yield Decoder(part, f"{name}." if name else "", layers)


def _takes_ids(part: nn.Module) -> bool:
    forward = type(part).forward
    return "input_ids" in inspect.signature(forward).parameters


def _layers_of(part: nn.Module) -> str | None:
    """The path of the longest list of layers that are its own, not those of a model inside of it."""
    from transformers import PreTrainedModel

    lists: list[tuple[int, str]] = []

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module._modules.items():
            if child is None or isinstance(child, PreTrainedModel):
                continue
            here = f"{path}.{name}" if path else name
            if isinstance(child, nn.ModuleList):
                if len(child) and all(map(_reads_a_stream, child)):
                    lists.append((len(child), here))
            elif not path:  # a stack of layers may be a module of its own (``encoder.layer``)
                walk(child, here)

    walk(part, "")
    return max(lists, key=lambda one: one[0])[1] if lists else None


def _reads_a_stream(layer: nn.Module) -> bool:
    """By the name of what it takes first; a forward that another library has replaced may name nothing."""
    try:
        parameters = list(inspect.signature(type(layer).forward).parameters.values())
    except (TypeError, ValueError):
        return False
    if len(parameters) < 2:
        return False
    first = parameters[1]
    return first.kind is first.VAR_POSITIONAL or first.name in _STREAMS


def _the_one_of(model: nn.Module, found: list[Decoder]) -> list[Decoder]:
    """The one that the model itself says is its decoder, where there are several (of speech beside text, say)."""
    ask = getattr(model, "get_decoder", None)
    if ask is None:
        return found
    try:
        said = ask()
    except (AttributeError, NotImplementedError):
        return found
    named = [one for one in found if one.module is said]
    return named or found


def input_device(decoder: Decoder) -> torch.device | None:
    """Where a decoder takes its ids: where its embedding is, or runs if it is offloaded; None where nothing says.

    An embedding need not have a weight of that name (a soft prompt's has others), or any.
    """
    embedding = decoder.embedding
    weight = embedding._parameters.get("weight")
    if weight is None:
        weight = next(embedding.parameters(), None)
    if weight is not None and weight.device != META:
        return weight.device
    for part in (embedding, decoder.module):  # accelerate's hooks
        at = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if at is not None:
            return torch.device(at)
    return None
