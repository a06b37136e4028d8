"""Wire: a checked plan on its way from an engine's front end to its workers, with one request.

The front end has done all that can fail; what arrives is plain data: the plan by value, what it costs, and
which phase holds from which position of *this* request on.

    digest      of the plan: equal plans share slots
    plan        its JSON, with only the directions that it uses
    cost        [slots, bank rows, programs], an upper bound that sharing only lowers
    course      [[first position, phase], ...], -1: not steered
    prompt      P, the prompt's length
    moves       whether a row's steering depends on more than its phase: 0 no · 1 on t - P (a schedule) · 2 on P
                itself (a condition, decided at the prompt's end)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from steerfast.io.plans import plan_to_json
from steerfast.plans.plan import Plan
from steerfast.plans.selectors import final_token
from steerfast.plans.slim import slim
from steerfast.routing.itinerary import NEVER
from steerfast.table.lowering import Lowered, Origin, lower
from steerfast.table.packing import Cost, pack

FIELD = "steerfast"  # of a request's extra arguments
WIRE = "steerfast.wire"  # what the front end puts in its place
STILL, WITH_PROMPT_END, WITH_PROMPT = range(3)


class Prepared(NamedTuple):
    """A plan, checked and lowered once, for any number of requests."""

    plan: Plan
    lowered: Lowered
    cost: Cost
    text: str


def prepare(plan: Plan, room: Cost | None = None) -> Prepared | None:
    """A plan ready for requests; None where nothing of it ever acts.

    room: what the engine has in all. ValueError for a plan that cannot be lowered, or needs more.
    """
    lowered = lower(plan, None if room is None else room.slots)
    packed = pack(plan, lowered.phases, room)
    if not any(phase.sites for phase in lowered.phases):
        return None
    cost = Cost(packed.slots, len(set(packed.directions)), len(set(packed.programs)))
    return Prepared(plan, lowered, cost, plan_to_json(slim(plan, provenance=False)))


def to_wire(prepared: Prepared, length: int, prompt: Sequence[int] | None) -> dict[str, Any]:
    """The wire form for a request with a prompt of ``length`` tokens.

    ValueError where the plan acts after a sequence that the prompt does not contain, or whose tokens are not known.
    """
    places: dict[Origin, int] = {"start": 0, "prompt_end": length}
    for sequence in prepared.lowered.sequences:
        if prompt is None:
            raise ValueError(
                "the plan acts after a token sequence, but this prompt comes as embeddings, without tokens"
            )
        places[sequence] = final_token(prompt, sequence)
    acts = [bool(phase.sites) for phase in prepared.lowered.phases]
    course = [
        [at, phase if phase >= 0 and acts[phase] else -1]
        for at, phase in prepared.lowered.course(places)
        if at < NEVER
    ]
    plan = prepared.plan
    moves = WITH_PROMPT_END if plan.schedule else STILL
    return {
        "digest": plan.digest,
        "plan": prepared.text,
        "cost": list(prepared.cost),
        "course": course,
        "prompt": length,
        "moves": WITH_PROMPT if plan.condition else moves,
    }


def block_key(wire: dict[str, Any], start: int, stop: int) -> str | None:
    """What tells a KV-cache block of positions start..stop-1 from the same tokens' unsteered one; None: nothing.

    Blocks are chained, so a key has to say only what happens *within* the block. Where a plan has not begun to act,
    its blocks are those of everybody; two requests share a steered block if the same phases of the same plan cover the same
    positions of it (and, where gains follow a schedule, at the same distance from the prompt's end).
    """
    course = wire["course"]
    parts = []
    for index, (at, phase) in enumerate(course):
        end = course[index + 1][0] if index + 1 < len(course) else stop
        if at < stop and end > start:
            parts.append((max(at, start) - start, phase))
    if all(phase < 0 for _, phase in parts):
        return None
    moves = (None, start - wire["prompt"], wire["prompt"])[wire["moves"]]
    content = repr((wire["digest"], parts, moves))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
