"""What a decoder gives its layers: its own forward, with the layers stood in for. Costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder
from steerfast.decoders.stood_in import stood_in_for
from steerfast.decoders.survey import Survey
from steerfast.errors import SteerfastError


class LayerInputs(NamedTuple):
    """stream: what enters the first layer, [B, T, D]. args, kwargs: what each layer is given beside it, for any number of rows."""

    stream: Tensor
    args: tuple[tuple[Any, ...], ...]
    kwargs: tuple[Mapping[str, Any], ...]


def layer_inputs(decoder: Decoder, survey: Survey, ids: Tensor) -> LayerInputs:
    """For prompts [B, T] that are padded on the right, where causal layers never look back at it.

    Raises SteerfastError for a model that gives its layers something else for each row: then rows cannot be forked.
    """
    if any(found.returns_more for found in survey.layers):
        raise SteerfastError(
            f"the layers of {type(decoder.module).__name__} hand on more than the stream, so that they cannot be run one by one; "
            "run the plans one by one, with attach"
        )
    taken: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    recording = [_recording(found.returns_tuple, taken) for found in survey.layers]
    with stood_in_for(zip(decoder.layers, recording, strict=True)):
        decoder.module(input_ids=ids, use_cache=False)
    rows = len(ids)
    stream = taken[0][0][0] if taken[0][0] else next(iter(taken[0][1].values()))
    shared = [
        (_for_any(args[1:] if args else (), rows), _for_any(_without(kwargs, args), rows))
        for args, kwargs in taken
    ]
    return LayerInputs(stream, tuple(a for a, _ in shared), tuple(k for _, k in shared))


def _without(kwargs: dict[str, Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Without the stream, which is the first that is given."""
    return kwargs if args else dict(list(kwargs.items())[1:])


def _recording(in_tuple: bool, taken: list[Any]) -> Callable[..., Any]:
    """A layer that passes its stream on, and notes what it was given."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        taken.append((args, kwargs))
        stream = args[0] if args else next(iter(kwargs.values()))
        return (stream,) if in_tuple else stream

    return forward


def _for_any(given: Any, rows: int) -> Any:
    """Of tensors that say the same of every row, one row, which broadcasts."""
    if isinstance(given, Mapping):
        return {name: _for_any(value, rows) for name, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_for_any(value, rows) for value in given)
    if not isinstance(given, Tensor) or given.ndim < 2 or rows == 1 or given.shape[0] != rows:
        return given
    if not torch.equal(given, given[:1].expand_as(given)):
        raise SteerfastError(
            f"the model gives its layers a tensor of shape {list(given.shape)} that differs from row to row, so that rows cannot be "
            "forked; run the plans one by one, with attach"
        )
    return given[:1]
