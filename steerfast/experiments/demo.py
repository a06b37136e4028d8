"""The demo: extract every shipped direction, steer generations, measure effect and speed.

Runs on any Llama; presentation is the command line's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steerfast import contrast
from steerfast.experiments.decode_speed import DecodeSpeed, decode_speed
from steerfast.experiments.dose import COEFFICIENTS, DosePoint, dose_response
from steerfast.experiments.prompts import encode_prompt, pad_token
from steerfast.extraction.extract import extract_pairs
from steerfast.models import Handle, attach
from steerfast.models.load import Loaded
from steerfast.plans.plan import Plan, steer
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector

PROMPTS = ("Tell me about your day.", "Describe the old house at the end of the street.")
GENERATION_COEFFICIENTS = (-0.25, 0.0, 0.25)
Advance = Callable[[], None]
Stage = Callable[[str, int], Advance]  # (what, how many steps) -> a function to call after each


@dataclass
class DemoResult:
    """Everything the demo found; plain data but for the vectors."""

    model: str
    layer: int
    vectors: dict[str, SteeringVector] = field(default_factory=dict)
    generations: list[dict[str, Any]] = field(default_factory=list)
    dose_response: dict[str, list[DosePoint]] = field(default_factory=dict)
    ms_per_token: DecodeSpeed | None = None


def steering_layer(num_layers: int) -> int:
    """A third of the depth: 10 of SmolLM2's 30, 11 of Llama-2-7B's 32 (the paper steers 10 to 15)."""
    return round(num_layers / 3)


def run(
    loaded: Loaded, stage: Stage, *, direction: str = "sentiment", quick: bool = False
) -> DemoResult:
    """All parts, in order; ``stage`` announces each and returns its progress callback.

    quick: fewer held-out pairs and decode steps, for a smoke test.
    """
    model, tokenizer, name = loaded
    layer = steering_layer(int(model.config.num_hidden_layers))
    result = DemoResult(name, layer)
    sets = [contrast.load(each) for each in contrast.shipped()]
    if direction not in {each.name for each in sets}:
        raise ValueError(
            f"no shipped direction {direction!r}; known: {', '.join(contrast.shipped())}"
        )
    speed_steps = 20 if quick else 120

    advance = stage("extracting vectors", len(sets))
    for each in sets:
        pairs = each.train[:8] if quick else each.train
        result.vectors[each.name] = extract_pairs(
            model, tokenizer, pairs, name=each.name, position="mean"
        )
        advance()

    with attach(model) as handle:
        advance = stage("generating", len(PROMPTS))
        for prompt in PROMPTS:
            result.generations += generations(
                handle,
                tokenizer,
                result.vectors[direction],
                prompt,
                layer,
                tokens=8 if quick else 32,
            )
            advance()
        doses = 2 * sum(c != 0 for c in COEFFICIENTS)
        advance = stage("measuring dose and response", doses * len(sets))
        for seed, each in enumerate(sets):
            held_out = each.held_out[:4] if quick else each.held_out
            result.dose_response[each.name] = dose_response(
                handle,
                tokenizer,
                result.vectors[each.name],
                held_out,
                layers=[layer],
                seed=seed,
                progress=advance,
            )

    advance = stage("timing decode steps", speed_steps)
    everywhere = everywhere_plan(result.vectors[direction])
    result.ms_per_token = decode_speed(model, everywhere, steps=speed_steps, progress=advance)
    return result


def everywhere_plan(vector: SteeringVector, coefficient: float = 0.01) -> Plan:
    """Every layer steered, as weakly as a dose spread over all of them would be."""
    return Plan((Term(vector, coefficient, scale="stream"),))


@torch.inference_mode()
def generations(
    handle: Handle,
    tokenizer: Any,
    vector: SteeringVector,
    prompt: str,
    layer: int,
    *,
    coefficients: Sequence[float] = GENERATION_COEFFICIENTS,
    tokens: int = 32,
) -> list[dict[str, Any]]:
    """Greedy continuations of one prompt, one row of the batch per coefficient, 0 being unsteered."""
    ids = encode_prompt(tokenizer, prompt).to(next(handle.model.parameters()).device)
    batch = ids.expand(len(coefficients), -1)
    plans = [steer(vector, c, layers=[layer], scale="stream") if c else None for c in coefficients]
    with handle.use(plans):
        out = handle.model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=pad_token(tokenizer),
        )
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return [
        {"prompt": prompt, "direction": vector.name, "coefficient": c, "text": text.strip()}
        for c, text in zip(coefficients, texts, strict=True)
    ]
