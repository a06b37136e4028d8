"""Activation generation: steering vectors from contrast pairs or from two corpora.

Everything is read at the output of each decoder layer (``resid_post``), in running float64 means
(``stream_means``), so memory does not grow with the number of samples, and the batch size changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from steerfast.extraction.contrast import ContrastPair
from steerfast.extraction.stream_means import (
    SIDES,
    Position,
    Progress,
    Sample,
    Side,
    StreamMean,
    stream_means,
)
from steerfast.models.fingerprint import fingerprint
from steerfast.models.tokens import doubled_bos, token_ids
from steerfast.plans.fields import wholes
from steerfast.plans.vector import LAYER_CONVENTION, SteeringVector

__all__ = [
    "Position",
    "continuation_start",
    "extract_corpora",
    "extract_mean",
    "extract_pairs",
    "with_stream_norms",
]


def extract_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[ContrastPair],
    *,
    name: str,
    position: Position = "last",
    layers: Iterable[int] | int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> SteeringVector:
    """Mean difference over contrast pairs (CAA, Rimsky et al. 2023; van der Weij et al. 2024).

        v_l = mean over pairs of  s_l(prompt + positive)[position] - s_l(prompt + negative)[position]

    position: ``last`` token, ``mean`` over the continuation's tokens, or an index into the text's tokens
        (negative from the end; -2 is CAA's answer letter before a bracket).
    layers: which to keep; default all. progress: called with the number of texts done.

    Texts are tokenised with the tokenizer's own special tokens and no chat template; one that a template has begun with
    BOS is not given another. Stream norms of
    the same texts are stored in the vector. Raises ValueError for no pairs, an empty continuation, or
    an index outside a text.
    """
    if not pairs:
        raise ValueError("extract_pairs needs at least one pair")
    kept = None if layers is None else wholes("a layer", layers)

    def groups() -> Iterator[tuple[Sample, ...]]:
        for pair in pairs:
            positive = _continuation(tokenizer, pair.prompt, pair.positive, 1)
            yield positive, _continuation(tokenizer, pair.prompt, pair.negative, -1)

    means = stream_means(
        model, groups(), position, batch_size=batch_size, progress=progress, kept=kept
    )
    facts = {"method": "mean difference of contrast pairs", "counts": {"pairs": len(pairs)}}
    return _vector(name, means, kept, model, {**facts, "position": position})


def extract_corpora(
    model: nn.Module,
    tokenizer: Any,
    positive: Iterable[str],
    negative: Iterable[str],
    *,
    name: str,
    position: Position = "last",
    layers: Iterable[int] | int | None = None,
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
    kept = None if layers is None else wholes("a layer", layers)
    for texts in (positive, negative):
        refuse_text(texts, "extract_corpora")

    def samples() -> Iterator[tuple[Sample]]:
        for side, texts in zip(SIDES, (positive, negative), strict=True):
            for text in texts:
                tokens = token_ids(tokenizer, text, truncation=True, max_length=max_tokens)
                if tokens:
                    yield (Sample(tokens, min(1, len(tokens) - 1), side),)

    means = stream_means(
        model, samples(), position, batch_size=batch_size, progress=progress, kept=kept
    )
    counts = {"positive": means[1].count, "negative": means[-1].count}
    if not all(counts.values()):
        raise ValueError(f"extract_corpora needs texts on both sides, got {counts}")
    facts = {"method": "difference of corpus means", "counts": counts, "max_tokens": max_tokens}
    return _vector(name, means, kept, model, {**facts, "position": position})


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
    given = ((Sample(list(sample), 0, 1),) for sample in samples)
    mean = stream_means(model, given, "last", batch_size=batch_size, progress=progress)[1]
    facts: dict[str, object] = {
        "method": "mean of a corpus",
        "counts": {"samples": len(samples)},
        "position": "last",
        **_of_model(model),
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
    ``stream`` needs. ValueError for no texts."""
    refuse_text(texts, "with_stream_norms")
    samples: Iterator[tuple[Sample]] = (
        (Sample(token_ids(tokenizer, text, truncation=True, max_length=max_tokens), 0, 1),)
        for text in texts
    )
    means = stream_means(model, samples, "last", batch_size=batch_size)
    if not means[1].count:
        raise ValueError("with_stream_norms needs at least one text")
    return replace(vector, stream_norms=means[1].norms.medians())


def refuse_text(texts: Iterable[str], what: str) -> None:
    """TypeError for one text (or the name of a file) where many are wanted: a text is an iterable of its letters."""
    if isinstance(texts, (str, bytes, PurePath)):
        raise TypeError(
            f"{what} takes an iterable of texts, and {str(texts)[:60]!r} is one; give [text], or read a file with "
            "steerfast.extraction.read_texts(path)"
        )


def _continuation(tokenizer: Any, prompt: str, continuation: str, side: Side) -> Sample:
    """The tokens of prompt + continuation, and where the continuation's begin."""
    text = prompt + continuation
    tokens = token_ids(tokenizer, text)
    first = continuation_start(tokenizer, prompt, continuation)
    if first >= len(tokens):
        raise ValueError(f"the continuation {continuation!r} of {prompt!r} has no tokens")
    return Sample(tokens, first, side)


def continuation_start(tokenizer: Any, prompt: str, continuation: str) -> int:
    """The index of the first token of prompt + continuation (``token_ids``) that reaches beyond the prompt."""
    text = prompt + continuation
    if getattr(tokenizer, "is_fast", False):
        read = tokenizer(text, return_offsets_mapping=True)
        doubled = doubled_bos(tokenizer, text, list(read["input_ids"]))
        offsets = read["offset_mapping"][doubled:]
        beyond = [index for index, (_, end) in enumerate(offsets) if end > len(prompt)]
        return beyond[0] if beyond else len(offsets)
    whole, head = token_ids(tokenizer, text), token_ids(tokenizer, prompt)
    same = 0
    while same < min(len(whole), len(head)) and whole[same] == head[same]:
        same += 1
    return same


def _vector(
    name: str,
    means: dict[Side, StreamMean],
    layers: Sequence[int] | None,
    model: nn.Module,
    facts: dict[str, object],
) -> SteeringVector:
    difference = (means[1].mean() - means[-1].mean()).to(torch.float32)
    norms = means[1].norms.merged(means[-1].norms).medians()
    kept = range(len(difference)) if layers is None else layers
    about = {**_of_model(model), **facts}
    directions = {layer: difference[layer] for layer in kept}
    return SteeringVector(name, directions, norms, about)


def _of_model(model: nn.Module) -> dict[str, object]:
    """What a vector remembers of its model: its name, and a fingerprint of its weights where there is one."""
    known = fingerprint(model)
    return {
        "model": str(getattr(getattr(model, "config", None), "_name_or_path", "")),
        **({} if known is None else {"fingerprint": known}),
        "layer_convention": LAYER_CONVENTION,
    }
