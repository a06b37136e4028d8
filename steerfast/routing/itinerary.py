"""Itinerary: what one request meets at which position: slots of the table, and gains.

A plan says "from the prompt's end"; a request has a prompt of a certain length, and an itinerary says
"from position 17". All that is left for a route is to look up a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

from steerfast.errors import SteerfastError
from steerfast.plans.selectors import final_token
from steerfast.table.entry import Entry
from steerfast.table.lowering import Lowered
from steerfast.table.phases import MAX_SEGMENTS, Origin

NEVER = 2**40  # a position that no token reaches


class Itinerary(NamedTuple):
    """From position ``starts[i]`` on, slot ``slots[i]`` (before the first, or in slot -1, not steered), with
    a gain through the points (``gain_at[i]``, ``gains[i]``), straight between them and held at the ends; without points 1."""

    starts: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    gain_at: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()


NOWHERE = Itinerary()  # of a request that is not steered


def itinerary(
    entry: Entry | None, prompt_length: int | None = None, prompt: Sequence[int] | None = None
) -> Itinerary:
    """The itinerary of a request with this prompt. None of ``prompt_length``: every token is prompt.

    Raises SteerfastError where the plan needs to know the prompt's length or tokens and they are not given,
    ValueError where a sequence that it acts after is not in the prompt.
    """
    if entry is None:
        return NOWHERE
    if prompt_length is None and prompt is not None:
        prompt_length = len(prompt)
    lowered, plan = entry.lowered, entry.plan
    if prompt_length is None:
        back = any(
            origin == "prompt_end" and min(offsets) < 0
            for origin, offsets in zip(lowered.origins, lowered.offsets, strict=True)
        )
        if back or plan.schedule is not None:
            raise _unknown_end(entry)
    if lowered.sequences and prompt is None:
        raise SteerfastError(
            f"plan {plan.digest[:8]} acts after a token sequence, and the prompt's tokens are not known "
            "here; give them: handle.use(plans, prompts=[[ids], ...])"
        )
    places = places_of(lowered, NEVER if prompt_length is None else prompt_length, prompt or ())
    course = [(position, slot) for position, slot in entry.course(places) if position < NEVER]
    assert len(course) <= MAX_SEGMENTS
    starts, slots = [position for position, _ in course], [slot for _, slot in course]
    if prompt_length is None and "prompt_end" in lowered.origins and max(slots, default=-1) < 0:
        raise _unknown_end(entry)
    if plan.schedule is None:
        return Itinerary(tuple(starts), tuple(slots))
    assert prompt_length is not None
    at = tuple(prompt_length + offset for offset, _ in plan.schedule.points)
    return Itinerary(
        tuple(starts), tuple(slots), at, tuple(gain for _, gain in plan.schedule.points)
    )


def withheld(entries: Sequence[Entry | None]) -> Itinerary:
    """Where these requests would steer cannot be said: a gain of NaN everywhere, in a slot of one of them."""
    slots = [slot for entry in entries if entry is not None for slot in entry.slots if slot >= 0]
    return Itinerary((0,), (slots[0],), (0,), (nan,)) if slots else NOWHERE


def places_of(lowered: Lowered, prompt_length: int, prompt: Sequence[int]) -> dict[Origin, int]:
    """Where in a request each origin is that a plan counts from. ValueError where a sequence is not in the prompt."""
    places: dict[Origin, int] = {"start": 0, "prompt_end": prompt_length}
    return places | {sequence: final_token(prompt, sequence) for sequence in lowered.sequences}


def _unknown_end(entry: Entry) -> SteerfastError:
    return SteerfastError(
        f"plan {entry.plan.digest[:8]} counts from the prompt's end, which a forward outside of generate does not "
        "know; say where it is: handle.use(plans, prompt_lengths=[...])"
    )


def check_acts_in_prompts(
    entries: Sequence[Entry | None], each: Sequence[Itinerary], lengths: Sequence[int]
) -> None:
    """SteerfastError for a plan that acts on nothing but what comes behind a prompt, in a forward that is all prompt
    because nobody said where prompts end."""
    for entry, one, length in zip(entries, each, lengths, strict=True):
        if entry is None or "prompt_end" not in entry.lowered.origins or not one.slots:
            continue
        acts = [start for start, slot in zip(one.starts, one.slots, strict=True) if slot >= 0]
        if acts and min(acts) >= length:
            raise _unknown_end(entry)


def itineraries(
    entries: Sequence[Entry | None],
    lengths: Sequence[int] | None,
    prompts: Sequence[Sequence[int]] | None,
) -> list[Itinerary]:
    """Of every row of a batch, as far as its prompt is known.

    Raises as ``itinerary``; ValueError for another number of lengths or prompts than of plans, SteerfastError for a
    condition whose prompt's end is not known.
    """
    for name, given in (("prompt lengths", lengths), ("prompts", prompts)):
        if given is not None and len(given) != len(entries):
            raise ValueError(
                f"use() was given {len(given)} {name}, but {len(entries)} plans; give one per plan"
            )
    each = [
        itinerary(
            entry,
            None if lengths is None else lengths[row],
            None if prompts is None else prompts[row],
        )
        for row, entry in enumerate(entries)
    ]
    conditional = [entry for entry in entries if entry is not None and entry.plan.condition]
    if conditional and lengths is None:
        raise SteerfastError(
            f"plan {conditional[0].plan.digest[:8]} has a condition, which is decided at the prompt's end, and a "
            "forward outside of generate does not know it; say where it is: handle.use(plans, prompt_lengths=[...])"
        )
    return each
