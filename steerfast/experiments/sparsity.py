"""Does steering act on a sparse model as it does on the dense one?

The same contrast pairs and doses on the dense model and on copies with their smallest weights removed. Each copy is
steered by a vector of its own, and by the dense model's. Doses are in units of each model's own median stream norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.experiments.config import SparsityConfig, described
from steerfast.experiments.measure import Laboratory, Pieces
from steerfast.experiments.progress import Stage
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials
from steerfast.extraction.contrast import ContrastSet
from steerfast.models import find_decoder
from steerfast.models.load import Loaded
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

# (name, data, the model's laboratory, pairs) -> vector, kept in the study's folder
MakeVector = Callable[[ContrastSet, Laboratory], SteeringVector]


@dataclass(frozen=True)
class Pruning:
    """share of the weights of every linear layer of the decoder, removed by magnitude: over the whole matrix
    (``unstructured``), or in every group of four along the input (``of 4``: 2 of 4 is what GPUs know as 2:4)."""

    pattern: str = "dense"
    share: float = 0.0

    @property
    def name(self) -> str:
        if self.pattern == "dense":
            return "dense"
        if self.pattern == "unstructured":
            return f"{self.share:.0%} unstructured"
        return f"{round(4 * (1 - self.share))}:4"


def prunings(config: SparsityConfig) -> list[Pruning]:
    """The dense model first, then every pattern with every share."""
    return [
        Pruning(),
        *(Pruning(pattern, share) for pattern in config.patterns for share in config.shares),
    ]


def pruned(model: nn.Module, pruning: Pruning) -> nn.Module:
    """A copy of the model with the smallest weights of its decoder's linear layers set to zero; embeddings, norms
    and the vocabulary projection stay. Raises ValueError for a share that the pattern does not know."""
    twin = copy.deepcopy(model)
    if pruning.pattern == "dense":
        return twin
    for layer in find_decoder(twin).layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                _prune(part, pruning)
    return twin


@torch.no_grad()
def _prune(part: nn.Linear, pruning: Pruning) -> None:
    if pruning.pattern == "unstructured":
        from torch.nn.utils import prune

        prune.l1_unstructured(part, "weight", amount=pruning.share)  # type: ignore[no-untyped-call]
        prune.remove(part, "weight")  # type: ignore[no-untyped-call]
        return
    removed = round(4 * pruning.share)
    if pruning.pattern != "of 4" or removed != 4 * pruning.share or part.in_features % 4:
        raise ValueError(
            f"cannot prune {pruning.share:.0%} by pattern {pruning.pattern!r}; known: unstructured with any share, and "
            "'of 4' with quarters, for input sizes that four divides"
        )
    groups = part.weight.view(part.out_features, -1, 4)
    smallest = groups.abs().argsort(stable=True, dim=-1)[..., :removed]
    groups.scatter_(-1, smallest, 0.0)


def run(
    dense: Loaded,
    config: SparsityConfig,
    sets: Mapping[str, ContrastSet],
    make_vector: MakeVector,
    text: Callable[[Laboratory], Pieces],
    trials: Trials,
    stage: Stage,
) -> dict[str, Any]:
    """The whole study, as plain data."""
    every = prunings(config)
    advance = stage("models", len(every))
    models: list[dict[str, Any]] = []
    originals: dict[str, SteeringVector] = {}
    for pruning in every:
        laboratory = Laboratory(
            Loaded(pruned(dense.model, pruning), dense.tokenizer, f"{dense.name}, {pruning.name}")
        )
        vectors = {name: make_vector(each, laboratory) for name, each in sets.items()}
        originals = originals or vectors
        models.append(
            {
                "name": pruning.name,
                "pattern": pruning.pattern,
                "share": pruning.share,
                "zeros": round(_zeros(laboratory.model), 6),
                "cosine": {
                    name: _cosine(vectors[name].at(config.layer), originals[name].at(config.layer))
                    for name in sets
                },
                **_measured(laboratory, config, sets, vectors, originals, text(laboratory), trials),
            }
        )
        advance()
    return {"kind": "sparsity", "config": described(config), "models": models}


def _measured(
    laboratory: Laboratory,
    config: SparsityConfig,
    sets: Mapping[str, ContrastSet],
    own: Mapping[str, SteeringVector],
    originals: Mapping[str, SteeringVector],
    text: Pieces,
    trials: Trials,
) -> dict[str, Any]:
    """Effects and tax of one model: a point a direction, kind of vector and dose."""
    arms = list(_arms(config, own, originals))
    plans: list[Plan | None] = [None, *(plan for _, _, _, plan in arms)]
    names = list(sets)
    jobs = [laboratory.pairs(plans, sets[name].held_out) for name in names]
    *odds, accuracies = trials.complete([*jobs, laboratory.accuracy(plans, text)])
    by_name = dict(zip(names, odds, strict=True))
    unsteered = accuracies[0]
    points = []
    for number, (name, kind, c, _) in enumerate(arms, 1):
        steered, plain = by_name[name][number]["log_odds"], by_name[name][0]["log_odds"]
        change = [after - before for after, before in zip(steered, plain, strict=True)]
        points.append(
            {
                "direction": name,
                "vector": kind,
                "coefficient": c,
                "effect": round(sum(change) / len(change), 6),
                "tax": round(unsteered["top1"] - accuracies[number]["top1"], 6),
            }
        )
    slopes = {
        kind: {name: _slope(points, name, kind) for name in names} for kind in ("own", "dense")
    }
    return {
        "unsteered": unsteered,
        "points": points,
        "slope": slopes["own"],
        "slope_of_dense_vector": slopes["dense"],
    }


def _arms(
    config: SparsityConfig,
    own: Mapping[str, SteeringVector],
    originals: Mapping[str, SteeringVector],
) -> Iterator[tuple[str, str, float, Plan]]:
    at = config.layer
    for name, vector in own.items():
        # The dense model's direction in units of this model's stream.
        borrowed = SteeringVector(
            originals[name].name, {at: originals[name].at(at)}, {at: vector.stream_norms[at]}
        )
        for kind, each in (("own", vector), ("dense", borrowed)):
            for c in config.coefficients:
                yield name, kind, c, individual(each, at, c, scale="stream")


def _slope(points: Sequence[Mapping[str, Any]], name: str, kind: str) -> float:
    """Least squares through the origin: nats per dose."""
    here = [p for p in points if p["direction"] == name and p["vector"] == kind]
    up = sum(point["coefficient"] * point["effect"] for point in here)
    return round(float(up / sum(point["coefficient"] ** 2 for point in here)), 6)


def _zeros(model: nn.Module) -> float:
    """Share of zeros in the linear layers of the decoder."""
    weights = [
        part.weight
        for layer in find_decoder(model).layers
        for part in layer.modules()
        if isinstance(part, nn.Linear)
    ]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _cosine(one: Tensor, other: Tensor) -> float:
    return round(float(torch.cosine_similarity(one.double(), other.double(), dim=0)), 6)
