"""Does a peer compute what it says? Each case compares it with the same model in float64, or bit for bit with itself.

Inputs carry ``position_ids`` as ``generate`` makes them, except in "batch 4, ids alone".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from peers.exact import in_float64, oracle
from peers.peer import Peer, Task

LIMIT = 1e-5  # of the largest logit, float32; the tiny Llama's own rounding is about 1e-6
SEED = 0
PROMPT, NEW = 8, 4


class Outcome(NamedTuple):
    """error: max |logits - wanted| / max |wanted|. status: ok · wrong (error above the limit) · fails (raised) ·
    has none (no such operation). reason: of the last three."""

    error: float | None
    status: Literal["ok", "wrong", "fails", "has none"]
    reason: str


class NotAskedFor(Exception):
    """A case does not apply to a peer, seen while it ran."""


# -- the cases ------------------------------------------------------------------------------------


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


def _forward(operation: str, batch: int, layers: int = 1, positions: bool = True) -> Any:
    def run(rig: Rig) -> float:
        ids = rig.ids(batch)
        given = {"position_ids": places(ids)} if positions else {}
        return rig.error(rig.task(operation, layers), input_ids=ids, **given)

    return run


def _padded(side: str) -> Any:
    def run(rig: Rig) -> float:
        inputs = padded(rig, side)
        return rig.error(rig.task("add", 5), inputs["attention_mask"], **inputs)

    return run


def _decode(operation: str, layers: int = 1, start: int = 0) -> Any:
    return lambda rig: rig.decoded(rig.task(operation, layers, start=start))


def _from_position(rig: Rig) -> float:
    ids = rig.ids(4)
    return rig.error(
        rig.task("add_from", 5, start=PROMPT // 2), input_ids=ids, position_ids=places(ids)
    )


def _preserve_padded(rig: Rig) -> float:
    """Whoever leaves padding alone leaves it the bits that it has when the peer is installed and steers nothing: a rescale by
    |h| / |h| does not. Not the plain model's bits: another order of a norm's sum may round otherwise."""
    inputs = padded(rig, "left")
    padding = inputs["attention_mask"] == 0
    with rig.steered(rig.task("preserve")) as call:
        steered = call(**inputs)
    with rig.peer.idle(rig.model, rig.tokenizer) as call:
        idle = call(**inputs)
    error = distance(steered, idle, padding)
    if error > 100 * LIMIT:
        raise NotAskedFor("steers padding like any token")
    return error


def _undone(rig: Rig) -> float:
    ids = rig.ids(2)
    inputs = {"input_ids": ids, "position_ids": places(ids)}
    before = rig.model(**inputs).logits
    with rig.steered(rig.task("add", 5)) as call:
        call(**inputs)
    return distance(rig.model(**inputs).logits, before)


def _second_model(rig: Rig) -> float:
    """Another model stays as it is while the first is steered."""
    ids = rig.ids(2)
    inputs = {"input_ids": ids, "position_ids": places(ids)}
    other = copy.deepcopy(rig.model)
    before = other(**inputs).logits
    with rig.steered(rig.task("add", 5)) as call:
        call(**inputs)
        return distance(other(**inputs).logits, before)


def _two_models(rig: Rig) -> float:
    """The first is steered the same whether or not a second is steered otherwise, and so is the second."""
    ids = rig.ids(2)
    inputs = {"input_ids": ids, "position_ids": places(ids)}
    other = copy.deepcopy(rig.model)
    tasks = rig.task("add", 5), rig.task("add", 5, seed=SEED + 1)
    with rig.peer.apply(rig.model, rig.tokenizer, tasks[0]) as call:
        alone = call(**inputs)
    with rig.peer.apply(other, rig.tokenizer, tasks[1]) as call:
        other_alone = call(**inputs)
    with (
        rig.peer.apply(rig.model, rig.tokenizer, tasks[0]) as call,
        rig.peer.apply(other, rig.tokenizer, tasks[1]) as other_call,
    ):
        return max(distance(call(**inputs), alone), distance(other_call(**inputs), other_alone))


class Case(NamedTuple):
    """operation: needed to take part; None: everyone. limit: of the error; 0 asks for the very bits."""

    operation: str | None
    run: Callable[[Rig], float]
    limit: float = LIMIT


CASES: dict[str, Case] = {
    "batch 1": Case("add", _forward("add", 1)),
    "batch 4": Case("add", _forward("add", 4)),
    "batch 4, ids alone": Case("add", _forward("add", 4, positions=False)),
    "5 layers": Case("add", _forward("add", 4, 5)),
    "decode": Case("add", _decode("add", 5)),
    "left padding": Case("add", _padded("left")),
    "right padding": Case("add", _padded("right")),
    "from a position": Case("add_from", _from_position),
    "from a position, decode": Case("add_from", _decode("add_from", 5, PROMPT // 2)),
    "preserve": Case("preserve", _forward("preserve", 4, 5)),
    "preserve, decode": Case("preserve", _decode("preserve", 5)),
    "preserve, padding kept": Case("preserve", _preserve_padded, 0.0),
    "ablate": Case("ablate", _forward("ablate", 4)),
    "ablate, 5 layers": Case("ablate", _forward("ablate", 4, 5)),
    "undone": Case(None, _undone, 0.0),
    "second model": Case(None, _second_model, 0.0),
    "two models": Case(None, _two_models, 0.0),
}


def check(peer: Peer, model: Any, tokenizer: Any) -> dict[str, Outcome]:
    """The outcome of each case of ``CASES`` for one peer, on a float32 model."""
    rig = Rig(peer, model, tokenizer, in_float64(model))
    return {name: _outcome(case, rig) for name, case in CASES.items()}


def _outcome(case: Case, rig: Rig) -> Outcome:
    if case.operation is not None and case.operation not in rig.peer.operations:
        return Outcome(None, "has none", f"no {case.operation}")
    try:
        # Not inference_mode: its tensors can't be told from others by libraries that look at versions.
        with torch.no_grad():
            error = case.run(rig)
    except NotAskedFor as reason:
        return Outcome(None, "has none", str(reason))
    except Exception as failure:
        first = (str(failure).strip().splitlines() or [""])[0]
        return Outcome(None, "fails", f"{type(failure).__name__}: {first}")
    if error > case.limit:
        wanted = "bitwise equal" if case.limit == 0 else f"at most {case.limit:g}"
        return Outcome(error, "wrong", f"off by {error:.2g}, {wanted} is asked")
    return Outcome(error, "ok", "")
