"""The tokens that conditions have read, so that what is read again is known to be the same.

A token of a prompt enters a condition's sums once, however often a cache is rewound over it. If another token stands there
then, the sums, and perhaps a verdict, are of a prompt that is no longer the one in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.routing.route import Rows

_UNREAD = torch.nan


class PromptTokens:
    """A number for each token of each seat's prompt: its id, or of an embedding a sum that tells it from others."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None  # [seats, T] float64

    def forget(self, seats: slice) -> None:
        if self.numbers is not None:
            self.numbers[seats] = _UNREAD

    def read(self, like: Tensor, rows: Rows, lengths: Tensor) -> None:
        """Note what a forward reads. like: [B, T] ids or [B, T, D] embeddings, the rows of a route. lengths: of each seat's
        prompt, 0 or less where nothing is decided. SteerfastError for another token than was read in its place before."""
        with torch.inference_mode(False), torch.no_grad():
            self._read(like, rows, lengths)

    def _read(self, like: Tensor, rows: Rows, lengths: Tensor) -> None:
        seats, places = rows.seat.clamp(min=0).long(), rows.position.long()
        inside = (rows.seat >= 0) & (places < lengths[seats])
        seats, places, numbers = seats[inside], places[inside], _numbers(like)[inside]
        if not len(places):
            return
        known = self._wide(lengths, int(places.max()) + 1)
        before = known[seats, places]
        for wrong in (~before.isnan() & (before != numbers)).nonzero()[:1, 0].tolist():
            raise SteerfastError(
                f"a plan has a condition, and this forward reads another token at position {int(places[wrong])} of the prompt "
                f"of row {int(seats[wrong])} than the condition has read there, so that what it decided is of another prompt; "
                "read a new prompt from its beginning, without a cache (in handle.generating: in another one)"
            )
        known[seats, places] = numbers

    def _wide(self, lengths: Tensor, width: int) -> Tensor:
        """The numbers, with room for so many of each seat."""
        before = self.numbers
        there = 0 if before is None else before.shape[1]
        if before is None or there < width:
            shape = len(lengths), max(width, 2 * there)
            self.numbers = torch.full(shape, _UNREAD, dtype=torch.float64, device=lengths.device)
            if before is not None:
                self.numbers[:, :there] = before
        assert self.numbers is not None
        return self.numbers


def _numbers(like: Tensor) -> Tensor:
    """[B * T] float64."""
    exact = like.detach().double()
    if like.ndim == 2:
        return exact.reshape(-1)
    weights = torch.cos(torch.arange(like.shape[-1], dtype=torch.float64, device=like.device))
    return (exact * weights).sum(-1).reshape(-1)
