"""Activation generation: steering vectors from contrast pairs or from two corpora.

Everything is read at the output of each decoder layer (``resid_post``), in running float64 means, so
memory does not grow with the number of samples, and the batch size changes nothing but speed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from steerfast.contrast import ContrastPair
from steerfast.models import find_decoder
from steerfast.stream_norms import NormHistogram
from steerfast.vector import LAYER_CONVENTION, SteeringVector

Position = Literal["last", "mean"] | int
Progress = Callable[[int], None]


class Sample(NamedTuple):
    """One text as tokens; ``first`` is where the part of interest begins, ``sign`` which mean it joins."""

    tokens: list[int]
    first: int
    sign: int


def extract_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[ContrastPair],
    *,
    name: str,
    position: Position = "last",
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> SteeringVector:
    """Mean difference over contrast pairs (CAA, Rimsky et al. 2023; van der Weij et al. 2024).

        v_l = mean over pairs of  s_l(prompt + positive)[position] - s_l(prompt + negative)[position]

    position: ``last`` token, ``mean`` over the continuation's tokens, or an index into the text's tokens
        (negative from the end; -2 is CAA's answer letter before a bracket).
    layers: which to keep; default all. progress: called with the number of texts done.

    Texts are tokenised with the tokenizer's own special tokens and no chat template. Stream norms of
    the same texts are stored in the vector. Raises ValueError for no pairs, an empty continuation, or
    an index outside a text.
    """
    if not pairs:
        raise ValueError("extract_pairs needs at least one pair")

    def samples() -> Iterator[Sample]:
        for pair in pairs:
            yield _continuation(tokenizer, pair.prompt, pair.positive, 1)
            yield _continuation(tokenizer, pair.prompt, pair.negative, -1)

    means = _run(model, samples(), position, batch_size, progress, layers)
    facts = {"method": "mean difference of contrast pairs", "counts": {"pairs": len(pairs)}}
    return _vector(name, means, layers, model, {**facts, "position": position})


def extract_corpora(
    model: nn.Module,
    tokenizer: Any,
    positive: Iterable[str],
    negative: Iterable[str],
    *,
    name: str,
    position: Position = "last",
    layers: Sequence[int] | None = None,
    max_tokens: int = 4096,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> SteeringVector:
    """Mean of one corpus minus mean of another: the paper's broad vectors (text minus code).

        v_l = mean over positive texts of s_l[position]  -  mean over negative texts of s_l[position]

    positive, negative: any iterables of texts, read once; each text is cut after ``max_tokens`` tokens
    (the paper: 4096). ``position="mean"`` averages over each text's tokens but the first. Raises
    ValueError if a corpus is empty.
    """

    def samples() -> Iterator[Sample]:
        for sign, texts in ((1, positive), (-1, negative)):
            for text in texts:
                tokens = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
                if tokens:
                    yield Sample(list(tokens), min(1, len(tokens) - 1), sign)

    means = _run(model, samples(), position, batch_size, progress, layers)
    counts = {"positive": means[1].count, "negative": means[-1].count}
    if not all(counts.values()):
        raise ValueError(f"extract_corpora needs texts on both sides, got {counts}")
    facts = {"method": "difference of corpus means", "counts": counts, "max_tokens": max_tokens}
    return _vector(name, means, layers, model, {**facts, "position": position})


def extract_mean(
    model: nn.Module,
    samples: Sequence[Sequence[int]],
    *,
    name: str,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> SteeringVector:
    """Mean stream of one corpus at the last token of each sample, per layer: m_l = mean of s_l[last].

    samples: token ids. The difference of two such means is what ``extract_corpora`` gives; the means themselves
    serve controls and averages over corpora. Raises ValueError for no samples, or one without tokens.
    """
    if not samples or not all(len(sample) for sample in samples):
        raise ValueError("extract_mean needs samples, each of at least one token")
    given = (Sample(list(sample), 0, 1) for sample in samples)
    mean = _run(model, given, "last", batch_size, progress)[1]
    facts: dict[str, object] = {
        "method": "mean of a corpus",
        "counts": {"samples": len(samples)},
        "position": "last",
        "model": str(getattr(getattr(model, "config", None), "_name_or_path", "")),
        "layer_convention": LAYER_CONVENTION,
    }
    directions = dict(enumerate(mean.mean().to(torch.float32)))
    return SteeringVector(name, directions, mean.norms.medians(), facts)


def with_stream_norms(
    vector: SteeringVector,
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    max_tokens: int = 512,
    batch_size: int = 16,
) -> SteeringVector:
    """The same vector with the model's median stream norm per layer, measured on ``texts``; what scale
    ``stream`` needs."""
    samples = (
        Sample(list(tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]), 0, 1)
        for text in texts
    )
    means = _run(model, samples, "last", batch_size, None)
    if not means[1].count:
        raise ValueError("with_stream_norms needs at least one text")
    return replace(vector, stream_norms=means[1].norms.medians())


class _Mean:
    """Running mean [L, D] in float64 and the distribution of token norms of one side."""

    def __init__(self, layers: int, hidden_size: int) -> None:
        self.total = torch.zeros((layers, hidden_size), dtype=torch.float64)
        self.count = 0
        self.norms = NormHistogram(layers)

    def mean(self) -> Tensor:
        return self.total / self.count


@torch.no_grad()
def _run(
    model: nn.Module,
    samples: Iterator[Sample],
    position: Position,
    batch_size: int,
    progress: Progress | None,
    kept: Sequence[int] | None = None,
) -> dict[int, _Mean]:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    decoder, _ = find_decoder(model)
    layers = list(decoder.layers)
    for layer in kept or ():
        if not 0 <= layer < len(layers):
            raise ValueError(
                f"cannot keep layer {layer}: this model has layers 0..{len(layers) - 1}"
            )
    steered = getattr(getattr(decoder.forward, "__self__", None), "shared", None)
    if steered is not None and steered.routing.active:
        warnings.warn(
            "extracting under handle.use(): the vector is of the steered model", stacklevel=3
        )
    width = int(decoder.config.hidden_size)
    means = {1: _Mean(len(layers), width), -1: _Mean(len(layers), width)}
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        done = 0
        while batch := list(islice(samples, batch_size)):
            _read_batch(decoder, layers, batch, position, means)
            done += len(batch)
            if progress is not None:
                progress(done)
    finally:
        for module in was_training:
            module.training = True
    return means


def _read_batch(
    decoder: Any,
    layers: list[nn.Module],
    batch: list[Sample],
    position: Position,
    means: dict[int, _Mean],
) -> None:
    """One forward pass, right-padded; a hook per layer keeps sums, never activations."""
    device = decoder.embed_tokens.weight.device
    longest = max(len(sample.tokens) for sample in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.int64)
    mask = torch.zeros((len(batch), longest), dtype=torch.int64)
    weights = torch.zeros((len(batch), longest), dtype=torch.float64)
    for row, sample in enumerate(batch):
        size = len(sample.tokens)
        ids[row, :size] = torch.tensor(sample.tokens)
        mask[row, :size] = 1
        weights[row] = _weights(sample, position, longest)
    counted = mask.bool()
    counted[:, 0] = False  # the first token's norm is an outlier in Llama-family models
    signs = torch.tensor([sample.sign for sample in batch])

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            stream = (output[0] if isinstance(output, tuple) else output).cpu()
            norms = torch.linalg.vector_norm(stream.float(), dim=-1)
            picked = torch.einsum("bt,btd->bd", weights, stream.double())
            for sign, mean in means.items():
                side = signs == sign
                mean.total[index] += picked[side].sum(0)
                mean.norms.add(index, norms[side][counted[side]])

        return hook

    hooks = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    for sign, mean in means.items():
        mean.count += int((signs == sign).sum())


def _weights(sample: Sample, position: Position, longest: int) -> Tensor:
    """Which tokens enter the mean of a sample, [longest] float64, summing to 1."""
    size = len(sample.tokens)
    weights = torch.zeros(longest, dtype=torch.float64)
    if position == "mean":
        weights[sample.first : size] = 1.0 / (size - sample.first)
        return weights
    index = size - 1 if position == "last" else position
    if isinstance(index, int) and index < 0:
        index += size
    if not isinstance(index, int) or not 0 <= index < size:
        raise ValueError(
            f"position {position!r} is outside a text of {size} tokens; use last, mean or an index"
        )
    weights[index] = 1.0
    return weights


def _continuation(tokenizer: Any, prompt: str, continuation: str, sign: int) -> Sample:
    """The tokens of prompt + continuation, and where the continuation's begin."""
    text = prompt + continuation
    tokens = list(tokenizer(text)["input_ids"])
    first = continuation_start(tokenizer, prompt, continuation)
    if first >= len(tokens):
        raise ValueError(f"the continuation {continuation!r} of {prompt!r} has no tokens")
    return Sample(tokens, first, sign)


def continuation_start(tokenizer: Any, prompt: str, continuation: str) -> int:
    """The index of the first token of prompt + continuation that reaches beyond the prompt."""
    text = prompt + continuation
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        beyond = [index for index, (_, end) in enumerate(offsets) if end > len(prompt)]
        return beyond[0] if beyond else len(offsets)
    whole, head = tokenizer(text)["input_ids"], tokenizer(prompt)["input_ids"]
    same = 0
    while same < min(len(whole), len(head)) and whole[same] == head[same]:
        same += 1
    return same


def _vector(
    name: str,
    means: dict[int, _Mean],
    layers: Sequence[int] | None,
    model: nn.Module,
    facts: dict[str, object],
) -> SteeringVector:
    difference = (means[1].mean() - means[-1].mean()).to(torch.float32)
    norms = means[1].norms.merged(means[-1].norms).medians()
    kept = range(len(difference)) if layers is None else layers
    config = getattr(model, "config", None)
    about = {
        "model": str(getattr(config, "_name_or_path", "")),
        "layer_convention": LAYER_CONVENTION,
        **facts,
    }
    directions = {layer: difference[layer] for layer in kept}
    return SteeringVector(name, directions, norms, about)
