"""Rows of a batch: texts as tensors, padded on the right, two continuations of one prompt in one row where that may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder, input_device
from steerfast.extraction.samples import SIDES, Position, Sample, Side, token_weights

WINDOW = 16  # batches whose rows are sorted by length together


class Row(NamedTuple):
    """Samples that begin alike, in one row: ``shared`` tokens, then what is left of each."""

    samples: tuple[Sample, ...]
    shared: int

    @property
    def length(self) -> int:
        return self.shared + sum(len(sample.tokens) - self.shared for sample in self.samples)

    @property
    def is_shared(self) -> bool:
        return len(self.samples) > 1


def batches(
    groups: Iterable[tuple[Sample, ...]], batch_size: int, longest: int
) -> Iterator[list[Row]]:
    """Rows of near lengths, ``batch_size`` texts at a time (one row at least); shared rows apart from others, whose mask is
    another. longest: tokens that a shared row may have."""
    rows = (row for group in groups for row in rows_of(group, longest))
    while window := list(islice(rows, WINDOW * batch_size)):
        window.sort(key=lambda row: (row.is_shared, row.length))
        batch: list[Row] = []
        for row in window:
            texts = sum(len(one.samples) for one in [*batch, row])
            if batch and (texts > batch_size or row.is_shared != batch[0].is_shared):
                yield batch
                batch = []
            batch.append(row)
        yield batch


def rows_of(group: tuple[Sample, ...], longest: int) -> list[Row]:
    """One row of all samples, if they begin alike and it has at most ``longest`` tokens; else a row each."""
    shared = 0
    if longest and len(group) > 1:
        for tokens in zip(*(sample.tokens for sample in group), strict=False):
            if len(set(tokens)) > 1:
                break
            shared += 1
    row = Row(group, shared)
    if shared and row.length <= longest:
        return [row]
    return [Row((sample,), 0) for sample in group]


class Batch:
    """Rows as tensors, padded on the right. tokens, positions: [B, T]; columns[row][sample]: where the sample's
    own tokens begin; real: [B, T]."""

    def __init__(self, rows: list[Row]) -> None:
        longest = max(row.length for row in rows)
        self.rows = rows
        self.tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
        self.positions = torch.zeros((len(rows), longest), dtype=torch.int64)
        self.branch = torch.zeros((len(rows), longest), dtype=torch.int64)  # 0: shared, or padding
        self.real = torch.zeros((len(rows), longest), dtype=torch.bool)
        self.columns: list[list[int]] = []
        for number, row in enumerate(rows):
            begins, at = [], row.shared
            self._put(number, 0, row.samples[0].tokens[: row.shared], 0, 0)
            for branch, sample in enumerate(row.samples, 1):
                own = sample.tokens[row.shared :]
                self._put(number, at, own, row.shared, branch)
                begins.append(at)
                at += len(own)
            self.columns.append(begins)

    def _put(
        self, row: int, column: int, tokens: Sequence[int], position: int, branch: int
    ) -> None:
        where = slice(column, column + len(tokens))
        self.tokens[row, where] = torch.tensor(tokens, dtype=torch.int64)
        self.positions[row, where] = torch.arange(position, position + len(tokens))
        self.branch[row, where] = branch
        self.real[row, where] = True

    def inputs(self, decoder: Decoder) -> dict[str, Tensor]:
        """What the decoder is called with. Where rows are shared it is told what attention may see, [B, 1, T, T], and where
        tokens stand; else a 2-D mask says it all."""
        device = input_device(decoder) or torch.device("cpu")
        tokens = self.tokens.to(device)
        if not any(row.is_shared for row in self.rows):
            return {"input_ids": tokens, "attention_mask": self.real.long().to(device)}
        return {
            "input_ids": tokens,
            "attention_mask": self._branches(decoder, device),
            "position_ids": self.positions.to(device),
        }

    def _branches(self, decoder: Decoder, device: torch.device) -> Tensor:
        length = self.tokens.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool).tril()
        seen, looking = self.branch[:, None, :], self.branch[:, :, None]
        allowed = causal & ((seen == 0) | (seen == looking))
        allowed = allowed[:, None].to(device)
        if decoder.config._attn_implementation == "sdpa":
            return allowed
        dtype = decoder.module.dtype
        lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
        return torch.where(allowed, torch.zeros_like(lowest), lowest)

    def weights(self, position: Position) -> dict[Side, Tensor]:
        """How much each token adds to the mean of each side: {side: [B, T] float64}."""
        found = {side: torch.zeros(self.tokens.shape, dtype=torch.float64) for side in SIDES}
        for number, (row, begins) in enumerate(zip(self.rows, self.columns, strict=True)):
            for sample, begin in zip(row.samples, begins, strict=True):
                shift = begin - row.shared
                for index, weight in token_weights(sample, position):
                    at = index if index < row.shared else index + shift
                    found[sample.side][number, at] += weight
        return found

    def tokens_of(self, side: Side) -> Tensor:
        """How many samples of a side each token belongs to, [B, T]; first tokens left out, whose norms are
        outliers in most models."""
        found = torch.zeros(self.tokens.shape, dtype=torch.int64)
        for number, row in enumerate(self.rows):
            for branch, sample in enumerate(row.samples, 1):
                if sample.side == side:
                    mine = (self.branch[number] == branch) | (self.branch[number] == 0)
                    found[number] += mine & self.real[number]
        return found * (self.positions > 0)
