"""Decode steps of a model under each peer, and what one costs without a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peers.counting import Counts, count
from peers.peer import Peer, Task, logits_of
from steerfast.experiments.decode_speed import twin

PROMPT = 8
WARM = 2


class Stepper:
    """A model of its own (weights shared) under one peer, with a cache that holds a prompt; peer None: unsteered."""

    def __init__(
        self, peer: Peer | None, model: Any, tokenizer: Any, task: Task, batch: int
    ) -> None:
        from transformers import DynamicCache

        self._open = ExitStack()
        mine = twin(model)
        forward: Any = logits_of(mine)
        if peer is not None:
            forward = self._open.enter_context(peer.apply(mine, tokenizer, task))
        self._call, self._cache = forward, DynamicCache(config=model.config)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(8, int(model.config.vocab_size), (batch, PROMPT), generator=generator)
        self._token = ids[:, :1].to(model.device)
        self._seen = 0
        self._forward(ids.to(model.device))

    def step(self) -> Tensor:
        """Logits of one more token of every row."""
        return self._forward(self._token)

    def _forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(self._seen, self._seen + ids.shape[1], device=ids.device)
        self._seen += ids.shape[1]
        logits: Tensor = self._call(
            input_ids=ids,
            position_ids=positions.expand(ids.shape),
            past_key_values=self._cache,
            use_cache=True,
        )
        return logits

    def close(self) -> None:
        self._open.close()


def task_for(model: Any, layers: int, operation: Any = "add") -> Task:
    """Vectors of 1% of a unit in each element at so many layers, evenly spread, never the last."""
    depth, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    if depth < layers + 2:
        raise ValueError(f"{layers} vectors need {layers + 2} layers, and this model has {depth}")
    generator = torch.Generator().manual_seed(0)
    chosen = [round((depth - 1) * (place + 1) / (layers + 1)) for place in range(layers)]
    return Task(operation, {at: 0.01 * torch.randn(width, generator=generator) for at in chosen})


@contextmanager
def steppers(
    peers: dict[str, Peer | None], model: Any, tokenizer: Any, task: Task, batch: int
) -> Iterator[dict[str, Stepper]]:
    """A stepper of every peer, all at once."""
    made: dict[str, Stepper] = {}
    try:
        for name, peer in peers.items():
            made[name] = Stepper(peer, model, tokenizer, task, batch)
        yield made
    finally:
        for stepper in reversed(made.values()):
            stepper.close()


class Cost(NamedTuple):
    """Of one decode step over an unsteered one, per steered layer. bytes: in tensors [B, 1, D] of the model."""

    kernels: float
    bytes: float
    syncs: float


@torch.no_grad()
def extra_cost(peer: Peer, model: Any, tokenizer: Any, task: Task, batch: int) -> Cost:
    """What a peer adds to a step of the stock model, for each layer that it steers."""
    counts: list[Counts] = []
    for one in (None, peer):
        stepper = Stepper(one, model, tokenizer, task, batch)
        for _ in range(WARM):  # the first steps prepare what the later ones find
            stepper.step()
        with count() as found:
            stepper.step()
        counts.append(found)
        stepper.close()
    layers = len(task.vectors)
    unit = batch * int(model.config.hidden_size) * model.dtype.itemsize
    return Cost(
        (counts[1].kernels - counts[0].kernels) / layers,
        (counts[1].bytes - counts[0].bytes) / layers / unit,
        counts[1].syncs / layers,
    )


def compiles(peer: Peer, model: Any, tokenizer: Any, task: Task) -> str:
    """ "yes" if torch.compile traces the steered model into one graph with the same result; else what came instead."""
    ids = torch.arange(8, 8 + PROMPT, device=model.device)[None]
    positions = torch.arange(PROMPT, device=model.device)[None]
    torch._dynamo.reset()
    try:
        with torch.no_grad(), peer.apply(twin(model), tokenizer, task) as call:
            wanted = call(input_ids=ids, position_ids=positions)
            traced: Callable[..., Tensor] = torch.compile(call, fullgraph=True, backend="eager")
            found = traced(input_ids=ids, position_ids=positions)
    except Exception as failure:
        kind = type(failure).__name__
        return "breaks the graph" if kind == "Unsupported" else f"fails ({kind})"
    finally:
        torch._dynamo.reset()
    return "yes" if torch.allclose(found, wanted, rtol=1e-4, atol=1e-4) else "wrong"
