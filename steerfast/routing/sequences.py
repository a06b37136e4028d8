"""Several sequences packed into one row, as training does without padding: where each begins, and where each token is in it.

Position ids say it: they ascend within a sequence and start again with the next one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.errors import SteerfastError


class Sequences(NamedTuple):
    """of_token: [B, T] int64, the number of each token's sequence, -1 for padding. positions: [B, T] int64, how many
    tokens of its sequence come before it. row_of, lengths: by sequence, the row that holds it and its tokens."""

    of_token: Tensor
    positions: Tensor
    row_of: list[int]
    lengths: list[int]

    def split(self, tokens: Tensor) -> list[list[int]]:
        """The token ids of each sequence; tokens: [B, T]."""
        each: list[list[int]] = [[] for _ in self.lengths]
        for row, numbers in zip(tokens.tolist(), self.of_token.tolist(), strict=True):
            for token, number in zip(row, numbers, strict=True):
                if number >= 0:
                    each[number].append(token)
        return each

    def check_whole(self, begun: int | None) -> None:
        """SteerfastError where these are only the ends of sequences, behind what a cache holds."""
        if begun != 0:
            raise SteerfastError(
                "position ids start again within a row, so it holds several sequences, but a cache holds what came before "
                "them; read packed rows in one forward, without a cache"
            )


def packed_sequences(position_ids: Tensor, real: Tensor | None, batch: int) -> Sequences | None:
    """The sequences of a batch of rows, or None where every row is one.

    position_ids: [B or 1, T]. real: [B or 1, T], 0 for padding, or None: there is no mask. A sequence begins where ids do
    not go on by one, as transformers separates them where there is no mask; beside a mask, where they do not ascend, and
    ids that skip some stay in theirs.
    """
    ids = position_ids.expand(batch, -1).to(torch.int64)
    token = torch.ones_like(ids, dtype=torch.bool) if real is None else (real != 0).expand_as(ids)
    # Of padding the highest id so far, so that what follows it is compared with the token before it.
    lowest = torch.iinfo(torch.int64).min
    known = torch.where(token, ids, lowest)
    before = torch.cat([torch.full_like(known[:, :1], lowest), _last_known(known, token)], 1)
    starts = token & (known != before + 1 if real is None else known <= before) | _first(token)
    if int(starts.sum()) <= int(token.any(-1).sum()):
        return None
    number = starts.reshape(-1).cumsum(0).reshape(starts.shape) - 1
    begin = torch.where(starts, token.cumsum(-1) - 1, 0).cummax(-1).values
    return Sequences(
        torch.where(token, number, -1),
        torch.where(token, token.cumsum(-1) - 1 - begin, 0),
        starts.nonzero()[:, 0].tolist(),
        torch.bincount(number[token]).tolist(),
    )


def _first(token: Tensor) -> Tensor:
    """Where each row's first token is."""
    return token & (token.cumsum(-1) == 1)


def _last_known(known: Tensor, token: Tensor) -> Tensor:
    """[B, T - 1]: the id of the last token at or before each column."""
    columns = torch.arange(token.shape[1], device=token.device).expand_as(known)
    last = torch.where(token, columns, 0).cummax(-1).values
    return known.gather(1, last)[:, :-1]
