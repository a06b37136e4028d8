"""Wire: a checked plan on its way from an engine's front end to its workers, with one request.

The front end has done all that can fail, and all that takes time; what goes over the wire are the numbers that a worker
copies into its table, and which phase holds from which position of *this* request on.

    phases, sites, reads, ends, rows    of ``table.packing.Packed``: a number, and arrays as bytes
    course      [[first position, phase], ...], -1: not steered
    gains       [[t - P, gain], ...], the points of a schedule
    prompt      P, the prompt's length

The engine core looks at all of it (``arrival.py``) before it lets a request in, and adds what it takes and what it is
known by; it believes nothing of that which somebody else could say.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from steerfast.plans.plan import Plan
from steerfast.routing.itinerary import NEVER, places_of
from steerfast.serving.remembered import Remembered
from steerfast.table.lowering import Lowered, lower
from steerfast.table.packing import Packed, pack

FIELD = "steerfast"  # of a request's extra arguments
WIRE = "steerfast.wire"  # what the front end puts in its place
_KEPT = 16 * 2**20  # bytes of parts that are known, where nobody says how many

Check = Callable[
    [Lowered], Packed
]  # what a part of a plan comes to; ValueError for one that is not let in
Parts = Remembered[tuple[int, str], "dict[str, Any] | ValueError"]
_prepared = itertools.count()


class Prepared:
    """A plan, checked once, for any number of requests.

    What it comes to in numbers takes many times the memory of its text: ``parts`` keeps as many of them as it may.
    """

    def __init__(self, plan: Plan, lowered: Lowered, check: Check, parts: Parts) -> None:
        self.plan, self.lowered, self._check, self._parts = plan, lowered, check, parts
        # Not the digest: what is let in depends on the norms that its vectors carry, which is not of what a plan does.
        self._number = next(_prepared)
        if not lowered.by_course:
            self.part(lowered)

    def part(self, part: Lowered) -> dict[str, Any]:
        """The numbers of a part of the plan, or the ValueError that it is refused with; looked at once."""
        key = self._number, part.key(self.plan)
        found = self._parts.get(key)
        if found is None:
            try:
                found = _numbers(self._check(part))
            except ValueError as error:
                found = ValueError(str(error))
            finally:
                part.forget()
            self._parts.put(key, found, size_of(found))
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found

    @property
    def size(self) -> int:
        """Bytes that keeping it takes, about. Vectors are the catalogue's, or of its text; but of a positional one a plan
        has an ordinary one for each position."""
        rows = sum(
            len(term.vector.layers) * (term.vector.positions or 0) for term in self.plan.terms
        )
        own = 1000 * len(self.plan.terms) + 500 * len(self.lowered.phase_of)
        return own + 4 * rows * self.plan.hidden_size


def prepare(plan: Plan, check: Check | None = None, parts: Parts | None = None) -> Prepared | None:
    """A plan ready for requests; None where nothing of it ever acts.

    check: what it comes to, of what an engine has room for and lets in. ValueError for a plan that cannot be lowered, or
    fails it; of a plan of many phases that is known with a request's prompt (``to_wire``). Also for one with a condition,
    which no engine can decide yet.
    """
    if plan.condition is not None:
        raise ValueError(
            "condition: this engine cannot decide conditions; leave it out, or use a gate on the terms"
        )
    lowered = lower(plan)
    if not any(map(lowered.acts, range(len(lowered.division.acting)))):
        return None
    return Prepared(
        plan,
        lowered,
        check or (lambda part: pack(plan, part.phases)),
        Remembered(_KEPT) if parts is None else parts,
    )


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
    place_of = {phase.number: place for place, phase in enumerate(part.phases)}
    course = [
        [at, place_of[phase] if lowered.acts(phase) else -1]
        for at, phase in lowered.course(places)
        if at < NEVER
    ]
    points = () if plan.schedule is None else plan.schedule.points
    gains = [list(point) for point in points]
    return {**prepared.part(part), "course": course, "gains": gains, "prompt": length}


def block_key(wire: dict[str, Any], start: int, stop: int) -> str | None:
    """What tells a KV-cache block of positions start..stop-1 from the same tokens' unsteered one; None: nothing.

    Blocks are chained, so a key has to say only what happens *within* the block. Where a plan has not begun to act,
    its blocks are those of everybody; two requests share a steered block if the same is done at the same positions of it
    (and, where gains follow a schedule, by the same one, at the same distance from the prompt's end).
    """
    steered = wire["steered"]
    parts = [
        (max(at, start) - start, steered[phase] if phase >= 0 else b"")
        for at, end, phase in _stretches(wire["course"], stop)
        if at < stop and end > start
    ]
    if not any(content for _, content in parts):
        return None
    gains = (wire["gains"], start - wire["prompt"]) if wire["gains"] else None
    return hashlib.sha256(repr((parts, gains)).encode()).hexdigest()[:32]


def _stretches(course: list[list[int]], stop: int) -> Iterator[tuple[int, int, int]]:
    """(first position, the one behind the last, phase) of each."""
    ends = [at for at, _ in course[1:]] + [stop]
    for (at, phase), end in zip(course, ends, strict=True):
        yield at, end, phase


def _numbers(packed: Packed) -> dict[str, Any]:
    """As plain data."""
    return {
        "phases": packed.phases,
        "sites": packed.sites.tobytes(),
        "reads": packed.reads.tobytes(),
        "ends": packed.ends.tobytes(),
        "rows": packed.rows.numpy().tobytes(),
    }


def size_of(found: dict[str, Any] | ValueError) -> int:
    """Bytes that a wire form, or a refusal, takes, about."""
    if isinstance(found, ValueError):
        return 200 + len(str(found))
    return 500 + sum(len(each) for each in found.values() if isinstance(each, bytes))
