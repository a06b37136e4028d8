"""Does a peer compute what it says? Each case compares it with the same model in float64, or bit for bit with itself.

Inputs carry ``position_ids`` as ``generate`` makes them, except in "batch 4, ids alone".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from peers.exact import in_float64
from peers.peer import Peer
from peers.rig import PROMPT, SEED, Rig, distance, padded, places

LIMIT = 1e-5  # of the largest logit, float32; the tiny Llama's own rounding is about 1e-6


class Outcome(NamedTuple):
    """error: max |logits - wanted| / max |wanted|. status: ok · wrong (error above the limit) · fails (raised) ·
    has none (no such operation). reason: of the last three."""

    error: float | None
    status: Literal["ok", "wrong", "fails", "has none"]
    reason: str


class NotAskedFor(Exception):
    """A case does not apply to a peer, seen while it ran."""


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
