"""What a forward was called with, as far as its route depends on it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """like: [B, T, ...], ids or embeddings. tokens: [B, T] ids, where there are ids. mask: 2-D, of the whole sequence.
    position_ids: [B or 1, T]. seen: how many tokens the cache holds. mask_kind: what the mask was, if it is not 2-D."""

    like: Tensor
    tokens: Tensor | None
    mask: Tensor | None
    position_ids: Tensor | None
    seen: int | Tensor
    mask_kind: str

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return int(self.like.shape[0]), int(self.like.shape[1])

    @property
    def rows(self) -> int:
        """B * T."""
        return self.shape[0] * self.shape[1]


def inputs_of(
    like: Tensor, tokens: Tensor | None, mask: Any, position_ids: Tensor | None, cache: Any
) -> Inputs:
    """From the arguments of a model of transformers. Position ids of several axes say nothing of the order of tokens."""
    kind = ""
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        kind = f"{mask.ndim}-D" if isinstance(mask, Tensor) else "custom"
        mask = None
    if position_ids is not None and position_ids.ndim != 2:
        position_ids = None
    seen = 0 if cache is None else cache.get_seq_length()
    return Inputs(like, tokens, mask, position_ids, seen, kind)
