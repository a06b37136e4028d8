"""Means of a model's residual stream over texts: what activation generation reads, at the output of every layer.

Two continuations of one prompt are read in one row, [prompt, first, second], in which the second does not see the
first: the prompt, which is most of a question with two answers, runs once. Rows of near lengths share a batch. Sums
are float64 and nothing but sums is kept, so that memory does not grow with the number of texts, and neither batch size
nor order changes anything but speed and the last bits of the forward itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerfast.decoders.evaluating import evaluating
from steerfast.decoders.find import Decoder
from steerfast.decoders.wiring import branch_of
from steerfast.extraction.samples import (
    SIDES,
    Position,
    Sample,
    Side,
    as_position,
    check,
    token_weights,
)
from steerfast.extraction.sharing import attention_mask, may_share
from steerfast.extraction.stream_norms import NormHistogram
from steerfast.models import attachment_of, find_decoder, input_device
from steerfast.plans.fields import whole

Progress = Callable[[int], None]
WINDOW = 16  # batches whose rows are sorted by length together


class Row(NamedTuple):
    """Samples that begin alike, in one row: ``shared`` tokens, then what is left of each."""

    samples: tuple[Sample, ...]
    shared: int

    @property
    def length(self) -> int:
        return self.shared + sum(len(sample.tokens) - self.shared for sample in self.samples)


class StreamMean:
    """Running mean [L, D] of one side, in float64, and the distribution of its tokens' norms."""

    def __init__(self, layers: int, hidden_size: int) -> None:
        self.total = torch.zeros((layers, hidden_size), dtype=torch.float64)
        self.count = 0
        self.norms = NormHistogram(layers)

    def mean(self) -> Tensor:
        return self.total / self.count


@torch.no_grad()
def stream_means(
    model: nn.Module,
    groups: Iterable[tuple[Sample, ...]],
    position: Position,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    kept: Sequence[int] | None = None,
) -> dict[Side, StreamMean]:
    """The mean stream of each side over all samples, at ``position`` (``last``, ``mean`` from ``first`` on, an index).

    groups: samples that go together, two continuations of a prompt or one text. batch_size: texts a forward.
    progress: called with the number of texts done. kept: layers that the caller will ask for.

    All is checked before the model runs: all groups are made, then read. Raises ValueError for a layer that is not there,
    an index outside a text or a token that the model does not know.
    """
    position, batch_size = as_position(position), whole("batch_size", batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is called with the number of texts done, got {progress!r}")
    decoder = find_decoder(model)
    layers = decoder.layers
    _check_kept(kept, len(layers))
    groups = list(groups)
    check((sample for group in groups for sample in group), position, decoder.module)
    patched = attachment_of(decoder)
    steered = patched is not None and patched.in_use().active
    if steered:
        warnings.warn(
            "extracting under handle.use(): the vector is of the steered model", stacklevel=3
        )
    means = {side: StreamMean(len(layers), decoder.hidden_size) for side in SIDES}
    done = 0
    with evaluating(model):
        # A route is made from a 2-D mask.
        sharing = not steered and may_share(decoder, _longest(groups))
        for rows in _batches(groups, batch_size, sharing):
            _read(decoder, layers, rows, position, means)
            done += sum(len(row.samples) for row in rows)
            if progress is not None:
                progress(done)
    return means


def _check_kept(kept: Sequence[int] | None, layers: int) -> None:
    if kept is not None and not kept:
        raise ValueError("layers names no layer to keep; leave it out to keep all")
    for layer in kept or ():
        if not 0 <= layer < layers:
            end = f", counted from 0; {layer} from the end is {layers + layer}"
            raise ValueError(
                f"cannot keep layer {layer}: this model has layers 0..{layers - 1}"
                f"{end if -layers <= layer < 0 else ''}"
            )


def _batches(
    groups: Iterable[tuple[Sample, ...]], batch_size: int, sharing: bool
) -> Iterator[list[Row]]:
    """Rows of near lengths, ``batch_size`` texts at a time (one row at least)."""
    rows = (row for group in groups for row in _rows(group, sharing))
    while window := list(islice(rows, WINDOW * batch_size)):
        window.sort(key=lambda row: row.length)
        batch: list[Row] = []
        for row in window:
            if batch and sum(len(one.samples) for one in [*batch, row]) > batch_size:
                yield batch
                batch = []
            batch.append(row)
        yield batch


def _longest(groups: Iterable[tuple[Sample, ...]]) -> int:
    """No row of continuations is longer than this."""
    return max(sum(len(sample.tokens) for sample in group) for group in groups)


def _rows(group: tuple[Sample, ...], sharing: bool) -> list[Row]:
    shared = 0
    if sharing and len(group) > 1:
        for tokens in zip(*(sample.tokens for sample in group), strict=False):
            if len(set(tokens)) > 1:
                break
            shared += 1
    return [Row(group, shared)] if shared else [Row((sample,), 0) for sample in group]


class _Batch:
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

    def mask(self, decoder: Decoder, device: torch.device) -> Tensor:
        """What attention may see: a 2-D mask where no row has branches, else [B, 1, T, T]."""
        if all(len(row.samples) == 1 for row in self.rows):
            return self.real.long().to(device)
        length = self.tokens.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool).tril()
        seen, looking = self.branch[:, None, :], self.branch[:, :, None]
        allowed = causal & ((seen == 0) | (seen == looking))
        return attention_mask(allowed[:, None], decoder, device)

    def where(self, device: torch.device) -> dict[str, Tensor]:
        """Position ids, where they are not the columns."""
        if all(len(row.samples) == 1 for row in self.rows):
            return {}
        return {"position_ids": self.positions.to(device)}

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
        outliers in Llama-family models."""
        found = torch.zeros(self.tokens.shape, dtype=torch.int64)
        for number, row in enumerate(self.rows):
            for branch, sample in enumerate(row.samples, 1):
                if sample.side == side:
                    mine = (self.branch[number] == branch) | (self.branch[number] == 0)
                    found[number] += mine & self.real[number]
        return found * (self.positions > 0)


def _read(
    decoder: Decoder,
    layers: list[nn.Module],
    rows: list[Row],
    position: Position,
    means: dict[Side, StreamMean],
) -> None:
    """One forward; a hook per layer adds what is wanted to the sums."""
    batch = _Batch(rows)
    wanted = []  # per side: flat places, their weights, and flat places of tokens whose norm counts
    for side, weights in batch.weights(position).items():
        flat, counts = weights.flatten(), batch.tokens_of(side).flatten()
        places = flat.nonzero()[:, 0]
        normed = counts.nonzero()[:, 0].repeat_interleave(counts[counts > 0])
        wanted.append((means[side], places, flat[places], normed))

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            stream = branch_of(output).flatten(0, 1)
            norms = torch.linalg.vector_norm(stream, dim=-1, dtype=torch.float32).cpu()
            for mean, places, weights, normed in wanted:
                picked = stream[places.to(stream.device)].cpu().double()
                mean.total[index] += weights @ picked
                mean.norms.add(index, norms[normed])

        return hook

    device = input_device(decoder) or torch.device("cpu")
    hooks = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        decoder.module(
            input_ids=batch.tokens.to(device),
            attention_mask=batch.mask(decoder, device),
            use_cache=False,
            **batch.where(device),
        )
    finally:
        for handle in hooks:
            handle.remove()
    for row in rows:
        for sample in row.samples:
            means[sample.side].count += 1
