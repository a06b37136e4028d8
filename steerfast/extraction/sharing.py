"""When two continuations of one prompt may share a row, [prompt, first, second], in which the second does not see the first.

That takes a decoder that hands a mask on as it is, tells positions by ``position_ids``, and has nothing else that passes
from a token to the next: no recurrent state, no convolution, no bias by distance in the row. It is tried, since a decoder
may swallow a mask in silence. What a few tokens cannot show, a window that is longer than they are, is in the configuration.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder
from steerfast.decoders.watch import undisturbed
from steerfast.decoders.wiring import branch_of
from steerfast.extraction.rows import Batch, Row
from steerfast.extraction.samples import Sample

# Kinds of layer that are plain attention within their window.
_PLAIN = {"full_attention", "sliding_attention", "chunked_attention"}
_WINDOW = re.compile(r"(?!.*pattern)(?!max_window_layers).*(window|chunk|index_topk)")
# Of a prompt and its two continuations; the first is long, so that a distance across it shows.
_LENGTHS = (5, 13, 4)


def longest_shared(decoder: Decoder) -> int:
    """How many tokens a row of two continuations may have: 0 where none may, as many as a window where layers have one."""
    config = decoder.config
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return 0  # others take no mask of one's own
    if not set(getattr(config, "layer_types", None) or ()) <= _PLAIN:
        return 0
    longest = min(_windows(config), default=sys.maxsize)
    return longest if longest and _may_share(decoder) else 0


def _windows(config: Any) -> Iterator[int]:
    """Whatever the configuration calls a window or a chunk."""
    for name, value in vars(config).items():
        if _WINDOW.match(name):
            for size in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(size, int) and size > 0 and size is not True:
                    yield size


def _may_share(decoder: Decoder) -> bool:
    """Whether a shared row gives what two rows give, at the output of every layer."""
    prompt, first, second = _tokens(decoder)
    samples = (Sample(prompt + first, 0, 1), Sample(prompt + second, 0, -1))
    try:
        with undisturbed(decoder.module):
            together = _streams(decoder, Batch([Row(samples, len(prompt))]))
            alone = _streams(decoder, Batch([Row((one,), 0) for one in samples]))
    except Exception:  # whatever a decoder says of a mask or an argument that it does not take
        return False
    start, between = len(prompt), len(prompt) + len(first)
    for shared, each in zip(together, alone, strict=True):
        wanted = torch.cat([each[0, :between], each[1, start : start + len(second)]]).float()
        apart = (shared[0].float() - wanted).norm() / wanted.norm()
        # Rounding adds up over layers, and differs with the shape of a batch.
        if not apart <= max(8 * torch.finfo(shared.dtype).eps, 1e-4):
            return False
    return True


def _tokens(decoder: Decoder) -> list[list[int]]:
    tokens = ((torch.arange(sum(_LENGTHS)) * 7 + 3) % int(decoder.config.vocab_size)).tolist()
    ends = torch.tensor(_LENGTHS).cumsum(0).tolist()
    return [tokens[end - length : end] for end, length in zip(ends, _LENGTHS, strict=True)]


def _streams(decoder: Decoder, batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: found.append(branch_of(out).clone()))
        for layer in decoder.layers
    ]
    try:
        decoder.module(**batch.inputs(decoder), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return found
