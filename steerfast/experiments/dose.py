"""Dose-response: how much a direction moves what a model would say, per coefficient.

Effect of a plan = mean over held-out pairs of
    [log p(positive | prompt) - log p(negative | prompt)]  -  the same without steering,
in nats, summed over each continuation's tokens. A norm-matched random direction is the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerfast.extraction.contrast import Pairs, preferences
from steerfast.models import Handle, find_decoder, input_device
from steerfast.models.projection import Projection
from steerfast.models.tokens import read
from steerfast.plans.plan import Plan, steer
from steerfast.plans.term import Scale
from steerfast.plans.vector import SteeringVector

# The same for every direction, in units of the median stream norm (scale "stream"). Beyond about 0.3 a
# small model falls apart and the curves bend back.
COEFFICIENTS = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)


class DosePoint(NamedTuple):
    """Effects in nats per pair, relative to no steering."""

    coefficient: float
    effect: float
    control: float


class PairBatch(NamedTuple):
    """Held-out pairs as right-padded tokens; rows 2i and 2i + 1 are the poles of pair i.

    ids, mask: [2 pairs, T] int64. scored: [2 pairs, T] bool, where a continuation's token is predicted.
    """

    ids: Tensor
    mask: Tensor
    scored: Tensor


def pair_batch(tokenizer: Any, pairs: Pairs) -> PairBatch:
    """Tokenise pairs (as ``extract_pairs`` takes them; of a set, the held-out ones) for ``log_probability_differences``."""
    chosen = preferences(pairs, "dose_response", "held_out")
    rows = [read(tokenizer, *side) for pair in chosen for side in pair.sides]
    for row, (tokens, first) in enumerate(rows):
        if first >= len(tokens):
            raise ValueError(f"a continuation of pair {row // 2 + 1} has no tokens to be predicted")
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, first) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        scored[row, max(first, 1) - 1 : len(tokens) - 1] = True
    return PairBatch(ids, mask, scored)


@torch.inference_mode()
def log_probability_differences(handle: Handle, batch: PairBatch, plan: Plan | None) -> Tensor:
    """log p(positive | prompt) - log p(negative | prompt) of each pair under a plan, [pairs] float64.

    Only the continuations' positions go through the vocabulary projection.
    """
    decoder = find_decoder(handle.model)
    device = input_device(decoder) or torch.device("cpu")
    with handle.use(plan):
        hidden = decoder.module(
            input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), use_cache=False
        ).last_hidden_state
    logits = Projection(handle.model)(hidden[batch.scored.to(device)])
    targets = batch.ids[:, 1:][batch.scored[:, :-1]].to(device)
    scores = -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    row = batch.scored.nonzero()[:, 0]
    sums = torch.zeros(len(batch.ids), dtype=torch.float64).index_add_(
        0, row, scores.double().cpu()
    )
    return sums[0::2] - sums[1::2]


def random_control(vector: SteeringVector, seed: int) -> SteeringVector:
    """A random direction per layer with the norms of ``vector``; same stream norms."""
    generator = torch.Generator().manual_seed(seed)
    directions = {}
    for layer, direction in vector.directions.items():
        noise = torch.randn(vector.hidden_size, generator=generator)
        directions[layer] = noise * (direction.norm() / noise.norm())
    return SteeringVector(f"random control of {vector.name}", directions, vector.stream_norms)


def dose_response(
    handle: Handle,
    tokenizer: Any,
    vector: SteeringVector,
    pairs: Pairs,
    *,
    layers: Sequence[int],
    coefficients: Sequence[float] = COEFFICIENTS,
    scale: Scale = "stream",
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> list[DosePoint]:
    """Effect of ``vector`` and of its random control at each coefficient, all tokens steered."""
    batch = pair_batch(tokenizer, pairs)
    directions = (vector, random_control(vector, seed))
    plans = [
        [steer(one, c, layers=layers, scale=scale) if c else None for one in directions]
        for c in coefficients
    ]
    for plan in (plan for each in plans for plan in each if plan is not None):
        handle.table.check(plan)  # before the model runs
    unsteered = log_probability_differences(handle, batch, None)

    def effect(plan: Plan | None) -> float:
        if plan is None:
            return 0.0
        change = log_probability_differences(handle, batch, plan) - unsteered
        if progress is not None:
            progress()
        return float(change.mean())

    return [DosePoint(c, *map(effect, each)) for c, each in zip(coefficients, plans, strict=True)]
