"""Peers that extract a vector from contrast pairs, each by its own function on the same texts, last token.

rotalabs-steer is left out: it runs the model anew for every layer and text, thirty times the work.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerfast.extraction.contrast import ContrastPair

Vectors = dict[int, Tensor]  # layer -> [D], at its output
BATCH = 16


@dataclass(frozen=True)
class Library:
    """extract: (model, tokenizer, pairs) -> vectors. gives: what its vector is."""

    environment: str
    extract: Callable[[Any, Any, Sequence[ContrastPair]], Vectors]
    gives: str


def steering_vectors(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    from steering_vectors import train_steering_vector

    texts = [(pair.prompt + pair.positive, pair.prompt + pair.negative) for pair in pairs]
    found = train_steering_vector(model, tokenizer, texts, batch_size=BATCH)
    return dict(found.layer_activations)


def repeng(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    from repeng import ControlVector, DatasetEntry

    entries = [
        DatasetEntry(pair.prompt + pair.positive, pair.prompt + pair.negative) for pair in pairs
    ]
    layers = list(range(model.config.num_hidden_layers - 1))
    with redirect_stderr(io.StringIO()):
        found = ControlVector.train(
            model,
            tokenizer,
            entries,
            hidden_layers=layers,
            batch_size=BATCH,
            method="pca_diff",
        )
    return {layer: torch.from_numpy(vector) for layer, vector in found.directions.items()}


LIBRARIES = {
    "steering-vectors": Library("main", steering_vectors, "mean difference"),
    "repeng": Library("apart", repeng, "first principal component of the differences"),
}
