"""Whether a decoder's embeddings go into its first layer and nowhere else, so that a model may be run on steered ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder
from steerfast.decoders.stood_in import stood_in_for
from steerfast.decoders.watch import PROMPT, LayerRun, Watched, tokens_for


def enters_alone(decoder: Decoder, watched: Watched) -> bool:
    """The decoder does the same around its layers, and gives them the same beside the stream, whatever the embeddings are
    and without ids: no layer reads them again, nothing of them is added to the result.

    Its layers are stood in for, so that this costs next to nothing.
    """
    ids, mask = tokens_for(decoder)
    ids, mask = ids[:, :PROMPT], mask[:, :PROMPT]
    assert watched.embedded is not None
    others = watched.embedded.value + 1
    given: list[Any] = []
    giving = [_giving(run, given) for run in watched.runs]
    try:
        with stood_in_for(zip(decoder.layers, giving, strict=True)):
            results = [
                decoder.module(**one, attention_mask=mask, use_cache=False, return_dict=True)
                for one in ({"input_ids": ids}, {"inputs_embeds": others})
            ]
    except Exception:  # a model that wants ids, or layers that hand on more than a stream
        return False
    count = len(given) // 2
    return _same(given[:count], given[count:]) and _same(*(tuple(one.values()) for one in results))


def _giving(run: LayerRun, given: list[Any]) -> Callable[..., Any]:
    """A layer that gives the same stream whatever it is given, and notes what that is beside the stream."""
    in_tuple = isinstance(run.output, (tuple, list))
    assert run.left is not None
    stream = run.left.value

    def forward(*args: Any, **kwargs: Any) -> Any:
        given.append((args[1:], dict(list(kwargs.items())[0 if args else 1 :])))
        return (stream.clone(),) if in_tuple else stream.clone()

    return forward


def _same(one: Any, other: Any) -> bool:
    """The same tensors at the same places; what else there is does not count."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return True
