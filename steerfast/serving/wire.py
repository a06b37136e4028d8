"""Wire: a checked plan on its way from an engine's front end to its workers, with one request.

The front end has done all that can fail; what arrives is plain data: the plan by value, what it costs, and
which phase holds from which position of *this* request on.

    digest      of the plan
    share       the digest, and what part of the plan the request needs: those who need the same share its slots
    plan        its JSON, with vectors by name
    vectors     theirs, by name, each once and with only the directions that the plan uses
    cost        [slots, bank rows, programs] of that part, an upper bound that sharing only lowers
    course      [[first position, phase], ...], -1: not steered
    prompt      P, the prompt's length
    moves       whether a row's steering depends on more than its phase: 0 no · 1 on t - P (a schedule) · 2 on P
                itself (a condition, decided at the prompt's end)
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steerfast.io.plans import plan_from_json, plan_to_json
from steerfast.io.vectors import vector_from_json, vector_to_json
from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector
from steerfast.routing.itinerary import NEVER, places_of
from steerfast.table.lowering import Lowered, lower
from steerfast.table.packing import Cost, pack

FIELD = "steerfast"  # of a request's extra arguments
WIRE = "steerfast.wire"  # what the front end puts in its place
STILL, WITH_PROMPT_END, WITH_PROMPT = range(3)
_PARTS = 64  # of one plan whose costs are known


Check = Callable[
    [Lowered], Cost
]  # what a part of a plan takes; ValueError for one that is not let in


class Prepared:
    """A plan, checked once, for any number of requests. cost: of all of it; None where it depends on the prompt.

    What is lowered on the way is not kept: a plan's numbers take many times the memory of its text.
    """

    def __init__(self, plan: Plan, lowered: Lowered, check: Check) -> None:
        self.plan, self.lowered, self._check = plan, lowered, check
        self._costs: OrderedDict[str, Cost | ValueError] = OrderedDict()
        self.cost = None if lowered.by_course else self.cost_of(lowered)
        self.text, self.vectors = _apart(plan)

    def cost_of(self, part: Lowered) -> Cost:
        """What a part of the plan takes, or the ValueError that it is refused with; looked at once."""
        key = part.key(self.plan)
        found = self._costs.get(key)
        if found is None:
            try:
                found = self._check(part)
            except ValueError as error:
                found = ValueError(str(error))
            finally:
                part.forget()
            self._costs[key] = found
            while len(self._costs) > _PARTS:
                self._costs.popitem(last=False)
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found

    @property
    def size(self) -> int:
        """Bytes that keeping it takes, about."""
        return 2 * len(self.text) + 2 * len(self.vectors) + 500 * len(self.lowered.phase_of)


def prepare(plan: Plan, check: Check | None = None) -> Prepared | None:
    """A plan ready for requests; None where nothing of it ever acts.

    check: what an engine has room for and lets in. ValueError for a plan that cannot be lowered, or fails it; of a plan
    of many phases that is known with a request's prompt (``to_wire``).
    """
    lowered = lower(plan)
    if not any(map(lowered.acts, range(len(lowered.division.acting)))):
        return None
    return Prepared(plan, lowered, check or (lambda part: cost(plan, part)))


def cost(plan: Plan, part: Lowered, room: Cost | None = None) -> Cost:
    """What a part of a plan takes of a table; PlanTooLargeError where that is more than there is."""
    packed = pack(plan, part.phases, room)
    return Cost(packed.slots, len(packed.directions), len(packed.programs))


def to_wire(prepared: Prepared, length: int, prompt: Sequence[int] | None) -> dict[str, Any]:
    """The wire form for a request with a prompt of ``length`` tokens.

    ValueError where the plan acts after a sequence that the prompt does not contain, or whose tokens are not known, or
    what this prompt needs of it is not let in.
    """
    plan, lowered = prepared.plan, prepared.lowered
    if lowered.sequences and prompt is None:
        raise ValueError(
            "the plan acts after a token sequence, but this prompt comes as embeddings, without tokens"
        )
    places = places_of(lowered, length, prompt or ())
    part = lowered.along(places)
    course = [
        [at, phase if lowered.acts(phase) else -1]
        for at, phase in lowered.course(places)
        if at < NEVER
    ]
    moves = WITH_PROMPT_END if plan.schedule else STILL
    return {
        "digest": plan.digest,
        "share": part.key(plan),
        "plan": prepared.text,
        "vectors": prepared.vectors,
        "cost": list(prepared.cost_of(part)),
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


def from_wire(wire: Mapping[str, Any]) -> Plan:
    """The plan that was put on the wire."""
    vectors = {name: vector_from_json(one) for name, one in json.loads(wire["vectors"]).items()}
    return plan_from_json(wire["plan"], vectors)


def _apart(plan: Plan) -> tuple[str, str]:
    """(a plan's JSON with vectors by name, JSON of these): each vector once, however many terms name it, with the
    directions and norms that they use. The plan's digest stays."""
    conditions = () if plan.condition is None else plan.condition.tests
    uses = [use for term in plan.terms for use in _uses(term)]
    uses += [(test.key, (test.layer,), False) for test in conditions]
    layers: dict[int, set[int]] = {}
    norms: set[int] = set()
    for vector, its_layers, needs_norms in uses:
        layers.setdefault(id(vector), set()).update(its_layers)
        norms |= {id(vector)} if needs_norms else set()
    known = {id(vector): vector for vector, _, _ in uses}
    slim = {
        key: SteeringVector(
            str(number),
            {layer: known[key].directions[layer] for layer in sorted(layers[key])},
            known[key].stream_norms if key in norms else {},
        )
        for number, key in enumerate(layers)
    }

    def term(one: Term) -> Term:
        return replace(
            one,
            vector=slim[id(one.vector)],
            read=one.read and slim[id(one.read)],
            second=one.second and slim[id(one.second)],
            gate=one.gate and replace(one.gate, key=slim[id(one.gate.key)]),
        )

    condition = plan.condition
    if condition is not None:
        tests = tuple(replace(test, key=slim[id(test.key)]) for test in condition.tests)
        condition = replace(condition, tests=tests)
    small = replace(plan, terms=tuple(term(one) for one in plan.terms), condition=condition)
    vectors = {one.name: vector_to_json(one) for one in slim.values()}
    return plan_to_json(small, inline=False), json.dumps(vectors)


def _uses(term: Term) -> Iterator[tuple[SteeringVector, tuple[int, ...], bool]]:
    """(vector, layers of it, whether its norms count), for each that a term has."""
    yield term.vector, term.steered_layers, term.scale == "stream"
    for other in (term.read, term.second, None if term.gate is None else term.gate.key):
        if other is not None:
            yield other, term.steered_layers, False
