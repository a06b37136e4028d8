"""Means of a model's residual stream over texts: what activation generation reads, at the output of every layer.

Two continuations of one prompt are read in one row where the decoder allows it, ``sharing`` says when: the prompt, which is
most of a question with two answers, then runs once. Rows of near lengths share a batch. Sums are float64 and nothing but
sums is kept, so that memory does not grow with the number of texts, and neither batch size nor order changes anything but
speed and the last bits of the forward itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.evaluating import evaluating
from steerfast.decoders.find import Decoder
from steerfast.decoders.wiring import branch_of
from steerfast.extraction.rows import Batch, Row, batches
from steerfast.extraction.samples import SIDES, Position, Sample, Side, as_position, check
from steerfast.extraction.sharing import longest_shared
from steerfast.extraction.stream_norms import NormHistogram
from steerfast.models import attachment_of, find_decoder
from steerfast.plans.fields import whole

Progress = Callable[[int], None]


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
        forks = not steered and any(len(group) > 1 for group in groups)
        longest = longest_shared(decoder) if forks else 0
        for rows in batches(groups, batch_size, longest):
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


def _read(
    decoder: Decoder,
    layers: list[nn.Module],
    rows: list[Row],
    position: Position,
    means: dict[Side, StreamMean],
) -> None:
    """One forward; a hook per layer adds what is wanted to the sums."""
    batch = Batch(rows)
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

    hooks = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        decoder.module(**batch.inputs(decoder), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    for row in rows:
        for sample in row.samples:
            means[sample.side].count += 1
