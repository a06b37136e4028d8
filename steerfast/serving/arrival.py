"""Arrival: what came over the wire, looked at before an engine lets it in.

A number out of place would be read from anywhere, by everybody's step. So the engine core checks every one of them, beside
its steps, and refuses the request alone; and what requests share slots, or blocks of keys and values, by is made here from
the content itself, never taken from who sent it.

    share       of what takes the same slots
    steered     of each phase, what is done in it; empty where nothing is
    cost        [slots, bank rows, programs]
    keys, programs    of the content of each row and program
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from steerfast.ops.records import FINISH_CODES, MAX_READS, READ_WIDTH, GateKind, Op
from steerfast.plans.sites import site_count
from steerfast.routing.itinerary import Itinerary
from steerfast.table.packing import NONE, SITE_WIDTH, SOURCE, TARGET, Cost, Ints, Packed, contents
from steerfast.table.phases import MAX_SEGMENTS

_SENT = {"phases", "sites", "reads", "ends", "rows", "course", "gains", "prompt"}
_POSITIONS = 2**40  # beyond any
_POINTS = 256  # of a schedule


def arrived(wire: object, layers: int, width: int, room: Cost) -> dict[str, Any]:
    """The wire form with what it is known by and what it takes; ValueError for anything that ``to_wire`` would not have
    sent to an engine of ``layers`` layers of width ``width`` with this room."""
    if not isinstance(wire, dict) or set(wire) != _SENT:
        raise _malformed("it has other parts than a plan")
    if not _is_whole(wire["prompt"], 0, _POSITIONS) or not _is_whole(
        wire["phases"], 1, room.slots + MAX_SEGMENTS
    ):
        raise _malformed("its numbers of tokens and phases are none")
    _check_course(wire["course"], wire["phases"])
    _check_gains(wire["gains"])
    packed = _checked(wire, layers, width)
    if any(need > there for need, there in zip(packed.cost, room, strict=True)):
        raise _malformed(f"it needs {packed.cost}, and there is {room} in all")
    share = hashlib.sha256(b"".join(each or bytes(32) for each in packed.steered)).hexdigest()
    return {
        **wire,
        "share": share,
        "steered": packed.steered,
        "cost": list(packed.cost),
        "keys": packed.keys,
        "programs": packed.programs,
    }


def packed_of(wire: Mapping[str, Any], width: int) -> Packed:
    """The numbers of what has arrived."""
    return _unpacked(wire, width, wire["keys"], wire["programs"])


def way_of(wire: Mapping[str, Any], slots: tuple[int, ...]) -> Itinerary:
    """What a request meets at which position, by the slots of its phases."""
    starts, phases = zip(*wire["course"], strict=True)
    gain_at = tuple(wire["prompt"] + at for at, _ in wire["gains"])
    held = tuple(slots[phase] if phase >= 0 else NONE for phase in phases)
    return Itinerary(tuple(starts), held, gain_at, tuple(gain for _, gain in wire["gains"]))


def _unpacked(
    wire: Mapping[str, Any], width: int, keys: tuple[bytes, ...], programs: tuple[bytes, ...]
) -> Packed:
    rows = np.frombuffer(wire["rows"], np.float32).reshape(-1, width)
    return Packed(
        wire["phases"],
        _ints(wire, "sites").reshape(-1, SITE_WIDTH),
        _ints(wire, "reads").reshape(-1, READ_WIDTH),
        _ints(wire, "ends"),
        torch.from_numpy(rows.copy()),  # bytes are not to be written to, and torch minds
        keys,
        programs,
    )


def _ints(wire: Mapping[str, Any], name: str) -> Ints:
    return np.frombuffer(wire[name], np.int32)


def _checked(wire: Mapping[str, Any], layers: int, width: int) -> Packed:
    """The numbers, none of them out of place, and what they are known by."""
    for name, size in (("sites", SITE_WIDTH), ("reads", READ_WIDTH), ("ends", 1), ("rows", width)):
        if not isinstance(wire[name], bytes) or len(wire[name]) % (4 * size):
            raise _malformed(f"its {name} are not whole lines of {size} numbers")
    data, size = wire["rows"], 4 * width
    keys = [hashlib.sha256(data[at : at + size]).digest() for at in range(0, len(data), size)]
    packed = _unpacked(wire, width, tuple(keys), ())
    if not packed.rows.isfinite().all():
        raise _malformed("a direction holds NaN or infinity")
    _check_sites(packed, site_count(layers))
    _check_reads(packed)
    return replace(packed, programs=contents(packed.reads, packed.ends, keys))


def _check_course(course: object, phases: int) -> None:
    if not isinstance(course, list) or not 1 <= len(course) <= MAX_SEGMENTS:
        raise _malformed(f"its course has not 1 to {MAX_SEGMENTS} stretches")
    before = -1
    for one in course:
        if not isinstance(one, list) or len(one) != 2:
            raise _malformed("a stretch of its course is no pair")
        at, phase = one
        if not _is_whole(at, before + 1, _POSITIONS) or not _is_whole(phase, NONE, phases):
            raise _malformed("its course does not ascend through its phases")
        before = at


def _check_gains(gains: object) -> None:
    if not isinstance(gains, list) or len(gains) > _POINTS:
        raise _malformed(f"its schedule has not 0 to {_POINTS} points")
    before = -_POSITIONS
    for one in gains:
        if not isinstance(one, list) or len(one) != 2 or not _is_whole(one[0], before, _POSITIONS):
            raise _malformed("its schedule does not ascend")
        if not isinstance(one[1], float) or not math.isfinite(one[1]):
            raise _malformed("a gain of its schedule is no number")
        before = one[0] + 1


def _check_sites(packed: Packed, sites: int) -> None:
    phase, site, finish, delta, program = packed.sites.T
    for values, first, end in (
        (phase, 0, packed.phases),
        (site, 0, sites),
        (finish, 0, len(FINISH_CODES)),
        (delta, NONE, len(packed.keys)),
        (program, NONE, len(packed.ends)),
    ):
        if ((values < first) | (values >= end)).any():
            raise _malformed("a site names what is not there")
    if len(np.unique(phase.astype(np.int64) * sites + site)) < len(site):
        raise _malformed("a phase has a site twice")


def _check_reads(packed: Packed) -> None:
    lengths = np.diff(packed.ends, prepend=0)
    if ((lengths < 1) | (lengths > MAX_READS)).any() or lengths.sum() != len(packed.reads):
        raise _malformed(f"a program has not 1 to {MAX_READS} reads")
    count, rows = np.repeat(lengths, lengths), len(packed.keys)
    op, source, target, partner, gate, key = packed.reads[:, :6].T
    assert (SOURCE, TARGET) == (1, 2)
    for values, first, end in (
        (op, 0, len(Op)),
        (source, NONE, rows),
        (target, NONE, rows),
        (partner, NONE, count),
        (gate, 0, len(GateKind)),
        (key, NONE, count),
    ):
        if ((values < first) | (values >= end)).any():
            raise _malformed("a read names what is not there")
    if not np.isfinite(np.ascontiguousarray(packed.reads[:, 6:]).view(np.float32)).all():
        raise _malformed("a read has a number that is NaN or infinite")


def _is_whole(value: object, first: int, end: int) -> bool:
    return type(value) is int and first <= value < end


def _malformed(reason: str) -> ValueError:
    return ValueError(
        f"what arrived for a request is no plan, because {reason}; the front end and this engine differ"
    )
