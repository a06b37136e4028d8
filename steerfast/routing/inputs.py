"""What a forward was called with, as far as its route depends on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.routing.capture import capturing


class Inputs(NamedTuple):
    """like: [B, T, ...], ids or embeddings. tokens: [B, T] ids, where there are ids. mask: 2-D, of the whole sequence.
    position_ids: [B or 1, T]. seen: how many tokens the cache holds, None if it does not say. mask_kind: what the mask was, if
    it is not 2-D."""

    like: Tensor
    tokens: Tensor | None
    mask: Tensor | None
    position_ids: Tensor | None
    seen: int | Tensor | None
    mask_kind: str

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return int(self.like.shape[0]), int(self.like.shape[1])

    @property
    def rows(self) -> int:
        """B * T."""
        return self.shape[0] * self.shape[1]

    @property
    def begun(self) -> int | None:
        """``seen``, which a static cache keeps on the device; None where a graph is captured, and nobody may look, and of a
        cache that does not say."""
        if self.seen is None:
            return None
        if capturing():
            return self.seen if isinstance(self.seen, int) else None
        return int(self.seen)

    def check_mask_kind(self) -> None:
        """SteerfastError for a mask of which nobody can say what is padding."""
        if self.mask_kind:
            raise SteerfastError(
                f"a {self.mask_kind} attention mask does not tell padding from tokens, and padding is never "
                "steered; pass a 2-D attention_mask, or none if there is no padding"
            )


def _counts(ids: Any, batch: int, length: int) -> bool:
    """Whether they are an integer for each token."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype is torch.bool:
        return False
    return ids.ndim == 2 and ids.shape[1] == length and ids.shape[0] in (1, batch)


def inputs_of(
    like: Tensor,
    tokens: Tensor | None,
    mask: Any,
    position_ids: Tensor | None,
    seen: int | Tensor | None,
) -> Inputs:
    """From the arguments of a model of transformers. Position ids of several axes say nothing of the order of tokens, and
    what is no position ids is left to the model to refuse. Where a cache does not say how much it ``seen``, a mask of the
    whole sequence does."""
    kind = ""
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        kind = f"{mask.ndim}-D" if isinstance(mask, Tensor) else "custom"
        mask = None
    if not _counts(position_ids, int(like.shape[0]), int(like.shape[1])):
        position_ids = None
    if seen is None and mask is not None and mask.shape[1] > like.shape[1]:
        seen = int(mask.shape[1] - like.shape[1])
    return Inputs(like, tokens, mask, position_ids, seen, kind)
