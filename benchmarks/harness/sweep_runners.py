"""Cells of the paper's grid search, and the ways of answering them that are compared: a loop, and readouts for the engine."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from steerfast import Plan, SteeringVector
from steerfast.experiments.schemes import individual

COEFFICIENTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # of the median stream norm


class Cell(NamedTuple):
    """One point of the grid on one question, by their numbers."""

    plan: int
    prompt: int


class LastLogits:
    """The whole logits of the last token."""

    last_only = True

    def __init__(self, head: Any) -> None:
        self.head, self.width = head, int(head.out_features)

    def __call__(self, normed: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        return self.head(normed[:, -1]).float()  # type: ignore[no-any-return]


class Answers:
    """The two best tokens of the last position: id, logit, logit of the second, and of largest magnitude."""

    last_only, width = True, 4

    def __init__(self, head: Any) -> None:
        self.head = head

    def __call__(self, normed: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        parts = []
        for rows in normed[:, -1].split(256):
            logits = self.head(rows).float()
            best = logits.topk(2, dim=1)
            first = best.indices[:, :1].double()
            parts.append(torch.cat([first, best.values, logits.abs().amax(1, keepdim=True)], 1))
        return torch.cat(parts)


def grid(vector: SteeringVector, layers: int) -> list[Plan]:
    """The paper's grid at this model's depth: its layers 0, 5, 10, ..., 29, 31 of 32."""
    chosen = [round(layer * (layers - 1) / 31) for layer in (0, 5, 10, 15, 20, 25, 29, 31)]
    return [
        individual(vector, layer, sign * c, scale="stream")
        for layer in chosen
        for c in COEFFICIENTS
        for sign in (1, -1)
    ]


@torch.inference_mode()
def loop(
    model: Any,
    plans: Sequence[Plan],
    prompts: Sequence[list[int]],
    cells: Sequence[Cell],
    generate: bool,
) -> list[torch.Tensor]:
    """The last logits of each cell, one at a time, by a forward hook."""
    found = []
    device = next(model.parameters()).device
    for cell in cells:
        (term,) = plans[cell.plan].terms
        (layer,) = term.steered_layers
        unit = term.unit(layer) * term.stream_norm(layer)
        delta = (term.coefficient * unit).to(device=device, dtype=model.dtype)
        hook = model.model.layers[layer].register_forward_hook(
            lambda module, args, output, delta=delta: output + delta
        )
        ids = torch.tensor([prompts[cell.prompt]], device=device)
        if generate:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits = out.logits[0][0]
        else:
            logits = model(ids, logits_to_keep=1).logits[0, -1]
        hook.remove()
        found.append(logits.float())
    return found


def words(text: str) -> list[int]:
    """Token ids for a model with random weights: one a word or mark, as many as a tokenizer would give."""
    return [zlib.crc32(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text)]


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])
