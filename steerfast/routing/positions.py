"""Absolute positions of a batch's tokens, from a padding mask or a cache's length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_mask(mask: object, rows: int, least: int, most: int | None = None) -> None:
    """ValueError unless a mask is [rows, T] with ``least`` <= T <= ``most``."""
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise ValueError(
            f"the attention_mask is {shape}; wanted a tensor [rows, tokens] with 0 for padding"
        )
    if mask.shape[0] != rows:
        raise ValueError(
            f"the attention_mask has {mask.shape[0]} rows, but there are {rows} prompts; give a row for each"
        )
    if mask.shape[1] < least or (most is not None and mask.shape[1] > most):
        raise ValueError(
            f"the attention_mask covers {mask.shape[1]} tokens, but the prompts have {least}; give one of the same width"
        )


def positions_of(
    mask: Tensor | None, rows: int, seen: int | Tensor, length: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(positions [B or 1, T] int64, real [B, T] or None) of the ``length`` tokens after the ``seen`` of a cache: how many
    tokens come before each, whatever number the model's own embedding of positions starts at.

    mask: [B, seen + T], zero for padding, which has no position; any other value is a token. rows: B. ValueError for a mask
    of other rows, or one that is too short.
    """
    here = torch.arange(length, device=device) + seen
    if mask is not None:
        mask = mask.to(device)
        check_mask(mask, rows, least=0)
        if isinstance(seen, int) and mask.shape[1] < seen + length:
            raise ValueError(
                f"attention_mask covers {mask.shape[1]} tokens, but the cache holds {seen} and "
                f"{length} more come; pass the mask of the whole sequence"
            )
        mask = (mask != 0).to(torch.int64)
        return (mask.cumsum(-1) - 1).index_select(1, here), mask.index_select(1, here)
    return here.unsqueeze(0), None


def prompts_of(
    tokens: Tensor, mask: Tensor | None, lengths: Sequence[int] | None
) -> list[list[int]]:
    """The token ids of each row's prompt: what is not padding, and no more than its length."""
    rows = tokens.tolist()
    if mask is not None:
        kept = (mask[:, : tokens.shape[1]] != 0).tolist()
        rows = [
            [token for token, real in zip(row, reals, strict=True) if real]
            for row, reals in zip(rows, kept, strict=True)
        ]
    if lengths is None:
        return rows
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
