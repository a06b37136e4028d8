"""The 2-D mask that a larger model was given, whose text decoder gets masks that it has made of it (of images beside text)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.find import Decoder
from steerfast.models.attachment import Attachment
from steerfast.models.rebind import Rebindings
from steerfast.models.stand_in import StandIn


class KeepsMask(StandIn):
    """The ``forward`` of a model around a decoder: its own, and what it was told of padding is known meanwhile."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        given = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs}
        mask, state = given.get("attention_mask"), self.shared.state
        outer = state.outer_mask
        if isinstance(mask, Tensor) and mask.ndim == 2:
            state.outer_mask = mask
        try:
            return self.original(*args, **kwargs)
        finally:
            state.outer_mask = outer


def keep_masks(
    model: nn.Module, decoder: Decoder, shared: Attachment, rebindings: Rebindings
) -> None:
    """Of all models around a decoder that is a part of another model than a language model's head."""
    for path, part in _around(model, decoder):
        rebindings.rebind(part, path or "model", "forward", partial(KeepsMask, shared))


def _around(model: nn.Module, decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    from transformers import PreTrainedModel

    names = decoder.path.rstrip(".").split(".")
    parents = [".".join(names[:depth]) for depth in range(len(names))]
    around = [
        (path, part)
        for path, part in ((path, model.get_submodule(path)) for path in parents)
        if isinstance(part, PreTrainedModel)
        and "attention_mask" in inspect.signature(type(part).forward).parameters
    ]
    if len(around) > 1:
        yield from around


def mask_of(shared: Attachment, mask: Any, rows: int, least: int) -> Any:
    """The mask to route by: the decoder's own if it is 2-D, else the one that the model around it was given, if it fits."""
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    outer = None if torch.compiler.is_compiling() else shared.state.outer_mask
    fits = outer is not None and outer.shape[0] == rows and outer.shape[1] >= least
    return outer if fits else mask
