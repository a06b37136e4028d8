"""The demo: extract a shipped direction, steer generations, measure effect and, where all is asked for, speed.

Runs on any causal decoder; presentation is the command line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steerfast import contrast
from steerfast.experiments.decode_speed import DecodeSpeed, decode_speed
from steerfast.experiments.dose import COEFFICIENTS, DosePoint, dose_response
from steerfast.experiments.progress import Stage
from steerfast.experiments.prompts import encode_prompt, pad_token
from steerfast.extraction.contrast import ContrastPair
from steerfast.extraction.extract import extract_pairs
from steerfast.models import Handle, attach, find_decoder
from steerfast.models.load import Loaded
from steerfast.plans.plan import Plan, steer
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector

PROMPTS = ("Tell me about your day.", "Describe the old house at the end of the street.")
# For a model without a chat template, which goes on with a text instead of answering it.
BEGINNINGS = ("My day was", "The old house at the end of the street")


@dataclass(frozen=True)
class Setting:
    """Where and how strongly to steer. depth: share of the layers. push: of generations, and most: the greatest dose that is
    measured, both in units of the stream's typical norm."""

    # Layer 10 of SmolLM2's 30, 11 of Llama-2-7B's 32; the paper steers 10 to 15.
    depth: float = 1 / 3
    push: float = 0.2
    most: float = 0.2

    def coefficients(self, full: bool) -> tuple[float, ...]:
        """Doses to measure at."""
        shares = COEFFICIENTS if full else FEWER_COEFFICIENTS
        return tuple(round(c / max(COEFFICIENTS) * self.most, 6) for c in shares)


FEWER_COEFFICIENTS = (-0.2, -0.1, 0.0, 0.1, 0.2)
# In the middle of Gemma 3 270M three channels of 640 hold 97% of the stream's energy and hardly change. What tells one
# token from another is a fifth of its length, so that doses in units of that length are a quarter of other models'.
SETTINGS = {"gemma3_text": Setting(1 / 2, 0.05, 0.03)}


def setting_for(model: Any) -> Setting:
    """By the model's type; the usual one where none is known to suit better."""
    return SETTINGS.get(str(model.config.model_type), Setting())


class Demo:
    """The parts of the demo, each called once, in this order; ``stage`` announces one and returns its progress callback.

    direction: the shipped one that generations are steered along. full: all shipped directions, every coefficient. quick:
    fewer pairs, tokens and steps, for a smoke test. Raises ValueError for an unknown direction.
    """

    def __init__(
        self, loaded: Loaded, direction: str = "sentiment", *, full: bool, quick: bool = False
    ) -> None:
        self.model, self.tokenizer, self.name = loaded
        self.direction, self.full, self.quick = direction, full, quick
        self.setting = setting_for(self.model)
        self.layer = round(len(find_decoder(self.model).layers) * self.setting.depth)
        chats = getattr(self.tokenizer, "chat_template", None) is not None
        self.prompts = PROMPTS if chats else BEGINNINGS
        known = contrast.shipped()
        if direction not in known:
            raise ValueError(f"no shipped direction {direction!r}; known: {', '.join(known)}")
        others = [each for each in known if each != direction] if full else []
        self.sets = {each: contrast.load(each) for each in (direction, *others)}
        self.vectors: dict[str, SteeringVector] = {}

    def extract(self, names: Sequence[str], stage: Stage) -> None:
        """``vectors`` of these directions, at every layer."""
        advance = stage("extracting vectors", len(names))
        for name in names:
            self.vectors[name] = extract_pairs(
                self.model, self.tokenizer, self.train(name), name=name, position="mean"
            )
            advance()

    def generate(self, prompt: str) -> list[dict[str, Any]]:
        """One row per coefficient: prompt, direction, coefficient, text."""
        push = self.setting.push
        with attach(self.model) as handle:
            return generations(
                handle,
                self.tokenizer,
                self.vectors[self.direction],
                prompt,
                self.layer,
                coefficients=(-push, 0.0, push),
                tokens=8 if self.quick else 32,
            )

    def measure(self, stage: Stage) -> dict[str, list[DosePoint]]:
        """Dose and response of every extracted direction on its held-out pairs."""
        coefficients = self.setting.coefficients(self.full)
        steps = 2 * sum(c != 0 for c in coefficients) * len(self.vectors)
        advance = stage("measuring dose and response", steps)
        with attach(self.model) as handle:
            return {
                name: dose_response(
                    handle,
                    self.tokenizer,
                    self.vectors[name],
                    self.held_out(name),
                    layers=[self.layer],
                    coefficients=coefficients,
                    seed=contrast.shipped().index(name),
                    progress=advance,
                )
                for name in contrast.shipped()
                if name in self.vectors
            }

    def train(self, name: str) -> Sequence[ContrastPair]:
        """The pairs that a direction is made from."""
        pairs = self.sets[name].train
        return pairs[:8] if self.quick else pairs

    def held_out(self, name: str) -> Sequence[ContrastPair]:
        """The pairs that a direction is measured on."""
        pairs = self.sets[name].held_out
        return pairs[:4] if self.quick else pairs

    def time(self, stage: Stage) -> DecodeSpeed:
        """Milliseconds of a decode step, steered at every layer and not."""
        steps = 20 if self.quick else 120
        advance = stage("timing decode steps", steps)
        everywhere = everywhere_plan(self.vectors[self.direction])
        return decode_speed(self.model, everywhere, steps=steps, progress=advance)


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
    coefficients: Sequence[float] = (-0.2, 0.0, 0.2),
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
