"""What the cases of ``agreement`` run on: a peer, its model and the float64 one, inputs, and how far logits are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peers.exact import oracle
from peers.peer import Peer, Task

SEED = 0
PROMPT, NEW = 8, 4


@dataclass(frozen=True)
class Rig:
    """What a case runs on: a peer, the model that it steers, and that model in float64."""

    peer: Peer
    model: Any
    tokenizer: Any
    model64: Any

    def ids(self, batch: int, length: int = PROMPT + NEW) -> Tensor:
        """Random tokens, away from the special ones at the start of the vocabulary."""
        generator = torch.Generator().manual_seed(SEED)
        vocabulary = int(self.model.config.vocab_size)
        return torch.randint(8, vocabulary, (batch, length), generator=generator).to(
            self.model.device
        )

    def task(self, operation: Any, layers: int = 1, seed: int = SEED, start: int = 0) -> Task:
        """Random vectors at one layer in the middle, or spread over several, none of them the last."""
        depth, width = self.model.config.num_hidden_layers, self.model.config.hidden_size
        generator = torch.Generator().manual_seed(seed)
        first = depth // 2 if layers == 1 else 1
        step = max(1, (depth - 2) // layers)
        chosen = range(first, first + step * layers, step)
        vectors = {layer: 0.5 * torch.randn(width, generator=generator) for layer in chosen}
        return Task(operation, vectors, 1.0 if operation == "ablate" else 1.5, start)

    def steered(self, task: Task) -> Any:
        return self.peer.apply(self.model, self.tokenizer, task)

    def error(self, task: Task, counts: Tensor | None = None, **inputs: Any) -> float:
        """Of one forward; counts: [B, T], the tokens that are compared."""
        with self.steered(task) as call:
            logits = call(**inputs)
        return distance(logits, oracle(self.model64, task, **inputs), counts)

    def decoded(self, task: Task, batch: int = 4) -> float:
        """Of a prompt and then single tokens with a cache, against the oracle without one."""
        from transformers import DynamicCache

        ids = self.ids(batch)
        positions = places(ids)
        cache = DynamicCache(config=self.model.config)
        logits = []
        with self.steered(task) as call:
            for begin, end in [(0, PROMPT), *((t, t + 1) for t in range(PROMPT, PROMPT + NEW))]:
                given = {"input_ids": ids[:, begin:end], "position_ids": positions[:, begin:end]}
                logits.append(call(**given, past_key_values=cache, use_cache=True))
        wanted = oracle(self.model64, task, input_ids=ids, position_ids=positions)
        return distance(torch.cat(logits, 1), wanted)


def places(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Position ids as ``generate`` makes them."""
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def padded(rig: Rig, side: str) -> dict[str, Tensor]:
    """Four prompts of 12, 9, 5 and 11 tokens, padded on one side to 12."""
    ids = rig.ids(4)
    index = torch.arange(ids.shape[1], device=ids.device)
    lengths = torch.tensor([[12], [9], [5], [11]], device=ids.device)
    real = index < lengths if side == "right" else index >= ids.shape[1] - lengths
    mask = real.long()
    return {
        "input_ids": ids.where(real, 1),
        "attention_mask": mask,
        "position_ids": places(ids, mask),
    }


def distance(logits: Tensor, wanted: Tensor, counts: Tensor | None = None) -> float:
    """max |logits - wanted| / max |wanted| over the tokens that count; not a number counts as infinite."""
    if logits.shape != wanted.shape:
        raise ValueError(f"logits are {list(logits.shape)}, wanted {list(wanted.shape)}")
    logits, wanted = logits.double(), wanted.double()
    if counts is not None:
        logits, wanted = logits[counts.bool()], wanted[counts.bool()]
    error = float((logits - wanted).abs().max() / wanted.abs().max())
    return error if error == error else float("inf")
