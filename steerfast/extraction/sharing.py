"""Whether two continuations of a prompt may be read in one row: not in a model in which one would be seen by the other."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder
from steerfast.models import input_device

_SHARED, _FIRST = 2, 2  # tokens of the prompt, of the first continuation; the second has one
_LENGTH = _SHARED + _FIRST + 1


def may_share(decoder: Decoder, longest: int) -> bool:
    """The decoder takes a mask of one's own and position ids: shown on a few tokens. False for state spaces, whose memory no
    mask divides, for rows longer than its window, and for whatever counts positions for itself."""
    config = decoder.config
    window = _window(config)
    if config._attn_implementation not in ("sdpa", "eager") or max(longest, _LENGTH) >= window:
        return False
    if "position_ids" not in inspect.signature(type(decoder.module).forward).parameters:
        return False
    try:
        return _shown(decoder)
    except Exception:  # it takes no such mask
        return False


def _window(config: Any) -> float:
    """How many tokens every layer sees, which a mask of one's own would not limit."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if kinds - {"full_attention", "sliding_attention"}:
        return 0
    if kinds == {"full_attention"} or (window is None and not kinds):
        return float("inf")
    return 0 if window is None else float(window)


@torch.no_grad()
def _shown(decoder: Decoder) -> bool:
    """The second continuation is what it is alone, and the first makes no difference to it."""
    device = input_device(decoder) or torch.device("cpu")
    mask = torch.ones((_LENGTH, _LENGTH), dtype=torch.bool).tril()
    mask[-1, _SHARED:-1] = False
    where = torch.tensor([*range(_SHARED + _FIRST), _SHARED])

    def last(ids: list[int], **more: Any) -> Tensor:
        given = torch.tensor([ids]).to(device)
        output = decoder.module.forward(input_ids=given, use_cache=False, return_dict=True, **more)
        return output[0][0, -1].double()  # type: ignore[no-any-return]

    own = attention_mask(mask[None, None], decoder, device)
    shared = {"attention_mask": own, "position_ids": where[None].to(device)}
    one, other = last([1, 2, 3, 4, 5], **shared), last([1, 2, 5, 3, 5], **shared)
    alone = last([1, 2, 5])
    eps = torch.finfo(decoder.module.dtype).eps
    size = float(alone.abs().max())
    near = 16 * eps if eps < 1e-4 else 8 * eps
    return bool((one - other).abs().max() <= 16 * eps * size) and bool(
        (one - alone).abs().max() <= max(near, 1e-5) * size
    )


def attention_mask(allowed: Tensor, decoder: Decoder, device: torch.device) -> Tensor:
    """What each token may see, [B, 1, T, T] bool, as the decoder's attention takes it."""
    allowed = allowed.to(device)
    if decoder.config._attn_implementation == "sdpa":
        return allowed
    dtype = decoder.module.dtype
    lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
    return torch.where(allowed, torch.zeros_like(lowest), lowest)
