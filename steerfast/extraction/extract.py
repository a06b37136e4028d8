"""Activation generation: steering vectors from contrast pairs or from two corpora.

Everything is read at the output of each decoder layer (``resid_post``), in running float64 means (``stream_means``), so
that only the tokens of the samples are kept, and the batch size changes nothing but speed. Whatever can be wrong with
what is given is looked for before the model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from steerfast.extraction.contrast import Pairs, as_pairs
from steerfast.extraction.samples import (
    SIDES,
    Position,
    Sample,
    Side,
    Texts,
    as_position,
    pair_samples,
    refuse_one_text,
    text_samples,
)
from steerfast.extraction.stream_means import Progress, StreamMean, stream_means
from steerfast.models.fingerprint import fingerprint
from steerfast.plans.fields import whole, wholes
from steerfast.plans.vector import LAYER_CONVENTION, SteeringVector

__all__ = [
    "Position",
    "extract_corpora",
    "extract_mean",
    "extract_pairs",
    "with_stream_norms",
]


def extract_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Pairs,
    *,
    name: str,
    position: Position = "last",
    layers: Iterable[int] | int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> SteeringVector:
    """Mean difference over contrast pairs (CAA, Rimsky et al. 2023; van der Weij et al. 2024).

        v_l = mean over pairs of  s_l(prompt + positive)[position] - s_l(prompt + negative)[position]

    pairs: a contrast set (its ``train`` pairs), or any iterable of ``ContrastPair``s, of tuples (prompt, positive,
        negative) or (positive, negative), or of dicts with these keys. Where a pair has a ``negative_prompt``, negative
        follows that.
    position: ``last`` token, ``mean`` over the continuation's tokens, or an index into the text's tokens
        (negative from the end; -2 is CAA's answer letter before a bracket).
    layers: which to keep, counted from 0; default all. progress: called with the number of texts done.

    Text is tokenised with the tokenizer's own special tokens, and not given another BOS where it begins with one; chat
    messages go through the tokenizer's template, with the beginning of an answer. Stream norms of the same texts are
    stored in the vector. Raises TypeError or ValueError, before the model runs, for no pairs, what is no pair, an empty
    continuation, an index outside a text, or a layer that is not there.
    """
    kept, position = _checked(name, layers, position)
    given = as_pairs(pairs, "extract_pairs")
    means = stream_means(
        model,
        pair_samples(tokenizer, given),
        position,
        batch_size=batch_size,
        progress=progress,
        kept=kept,
    )
    facts = {"method": "mean difference of contrast pairs", "counts": {"pairs": len(given)}}
    return _vector(name, means, kept, model, {**facts, "position": position})


def extract_corpora(
    model: nn.Module,
    tokenizer: Any,
    positive: Texts,
    negative: Texts,
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

    positive, negative: any iterables of texts, of chat messages (a list of them is one text), or of rows with one of the
        keys ``text``, ``prompt`` and ``messages``; each is cut after ``max_tokens`` tokens (the paper: 4096).
    position: ``mean`` is over each text's tokens but the first, or over the answer of messages that end with the
        assistant's. Messages that do not end so are read up to where the answer would begin.

    Raises TypeError or ValueError, before the model runs, for an empty corpus, what is no text, an empty text, an index
    outside a text, or a layer that is not there.
    """
    kept, position = _checked(name, layers, position)
    sides = [
        _texts(tokenizer, texts, side, max_tokens, f"extract_corpora's {which}")
        for texts, side, which in (
            (positive, SIDES[0], "positive"),
            (negative, SIDES[1], "negative"),
        )
    ]
    means = stream_means(
        model, chain(*sides), position, batch_size=batch_size, progress=progress, kept=kept
    )
    counts = {"positive": means[1].count, "negative": means[-1].count}
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
    _check_name(name)
    given = [(Sample(wholes("a token id", sample), 0, 1),) for sample in samples]
    if not given or not all(sample.tokens for (sample,) in given):
        raise ValueError("extract_mean needs samples, each of at least one token")
    mean = stream_means(model, given, "last", batch_size=batch_size, progress=progress)[1]
    facts: dict[str, object] = {
        "method": "mean of a corpus",
        "counts": {"samples": len(given)},
        "position": "last",
        **_of_model(model),
    }
    directions = dict(enumerate(mean.mean().to(torch.float32)))
    return SteeringVector(name, directions, mean.norms.medians(), facts)


def with_stream_norms(
    vector: SteeringVector,
    model: nn.Module,
    tokenizer: Any,
    texts: Texts,
    *,
    max_tokens: int = 512,
    batch_size: int = 16,
) -> SteeringVector:
    """The same vector with the model's median stream norm per layer, measured on ``texts``; what scale
    ``stream`` needs. texts: as ``extract_corpora`` takes them. ValueError for no texts."""
    if not isinstance(vector, SteeringVector):
        raise TypeError(f"with_stream_norms takes a SteeringVector, got {type(vector).__name__}")
    samples = _texts(tokenizer, texts, 1, max_tokens, "with_stream_norms")
    means = stream_means(model, samples, "last", batch_size=batch_size)
    return replace(vector, stream_norms=means[1].norms.medians())


def _checked(
    name: str, layers: Iterable[int] | int | None, position: Position
) -> tuple[tuple[int, ...] | None, Position]:
    """What does not depend on the model; (layers, position)."""
    _check_name(name)
    return None if layers is None else wholes("a layer", layers), as_position(position)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a vector needs a name, got {name!r}")


def _texts(
    tokenizer: Any, texts: Texts, side: Side, max_tokens: int, what: str
) -> Iterator[tuple[Sample]]:
    """``text_samples`` of at least one text. The texts themselves are looked at once they are asked for."""
    refuse_one_text(texts, what)
    most = whole("max_tokens", max_tokens)
    if most < 1:
        raise ValueError(f"max_tokens is {most}; it must be at least 1")

    def made() -> Iterator[tuple[Sample]]:
        samples = text_samples(tokenizer, texts, side, most, what)
        first = next(samples, None)
        if first is None:
            raise ValueError(f"{what} needs at least one text")
        yield first
        yield from samples

    return made()


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
