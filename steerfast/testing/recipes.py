"""The operators of plans as reads, lowered by hand: what the cases and the laws are made of.

Each function returns the reads of one operator, with ``partner`` and ``key`` counted from its own
first read; ``Table.program`` joins several into a program. Arguments named a, b, v, source, target and key
are rows of the bank; directions v, b1, b2 are taken to have norm 1, b1 and b2 to be orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from steerfast.ops.records import GateKind, Op, Read


def ablate(v: int, strength: float = 1.0) -> list[Read]:
    """-strength p v"""
    return [Read(Op.AFFINE, v, v, slope=-strength)]


def reflect(v: int, strength: float = 1.0) -> list[Read]:
    """-2 strength p v"""
    return ablate(v, 2.0 * strength)


def clamp(v: int, target: float) -> list[Read]:
    """(target - p) v"""
    return [Read(Op.AFFINE, v, v, slope=-1.0, offset=target)]


def floor(v: int, target: float) -> list[Read]:
    """max(target - p, 0) v"""
    return [Read(Op.FLOOR, v, v, slope=-1.0, offset=target)]


def ceiling(v: int, target: float) -> list[Read]:
    """-max(p - target, 0) v"""
    return [Read(Op.CEILING, v, v, slope=-1.0, offset=target)]


def constant(v: int, coefficient: float) -> list[Read]:
    """coefficient v: pointless ungated, where a delta is cheaper"""
    return [Read(Op.AFFINE, -1, v, offset=coefficient)]


def signed(v: int, coefficient: float) -> list[Read]:
    """coefficient sign(p) v"""
    return [Read(Op.SIGNED, v, v, slope=coefficient)]


def add_relative(v: int, coefficient: float) -> list[Read]:
    """coefficient n v"""
    return [Read(Op.RELATIVE, -1, v, slope=coefficient)]


def linear(a: int, b: int, coefficient: float, bias: float = 0.0) -> list[Read]:
    """The operator ``map``: coefficient (<h, a> + bias) b"""
    return [Read(Op.AFFINE, a, b, slope=coefficient, offset=coefficient * bias)]


def feature_clamp(a: int, b: int, target: float, bias: float, threshold: float) -> list[Read]:
    """(target - f) b, z = <h, a> + bias, f = z if z > threshold else 0"""
    return [Read(Op.FEATURE, a, b, offset=bias, level=target, threshold=threshold)]


def rotate_by(b1: int, b2: int, angle: float) -> list[Read]:
    """((cos - 1) p1 - sin p2) b1 + (sin p1 + (cos - 1) p2) b2"""
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        Read(Op.AFFINE, b1, b1, partner=1, slope=cos - 1.0, cross=-sin),
        Read(Op.AFFINE, b2, b2, partner=0, slope=cos - 1.0, cross=sin),
    ]


def rotate_to(b1: int, b2: int, angle: float) -> list[Read]:
    """(q cos - p1) b1 + (q sin - p2) b2, q = hypot(p1, p2)"""
    return [
        Read(Op.TURN, b1, b1, partner=1, slope=-1.0, cross=math.cos(angle)),
        Read(Op.TURN, b2, b2, partner=0, slope=-1.0, cross=math.sin(angle)),
    ]


def slerp(v: int, share: float) -> list[Read]:
    """h moved by ``share`` of its angle to v along the great circle"""
    return [Read(Op.SLERP, v, v, slope=share)]


def gated(reads: Sequence[Read], gate: GateKind, key: int, bias: float) -> list[Read]:
    """The same reads, multiplied by a gate that a further read of the bank row ``key`` opens."""
    place = len(reads)
    return [replace(r, gate=gate, key=place, bias=bias) for r in reads] + [Read(Op.KEY, key)]


def joined(*operators: Sequence[Read]) -> list[Read]:
    """One program out of several operators: partners and keys renumbered."""
    program: list[Read] = []
    for reads in operators:
        start = len(program)
        program += [
            replace(
                read,
                partner=read.partner + start if read.partner >= 0 else -1,
                key=read.key + start if read.key >= 0 else -1,
            )
            for read in reads
        ]
    return program


def permuted(program: Sequence[Read], order: Sequence[int]) -> list[Read]:
    """The program with read ``order[i]`` in place i: the same row update in another order of sums."""
    place = {old: new for new, old in enumerate(order)}
    place[-1] = -1
    return [
        replace(program[old], partner=place[program[old].partner], key=place[program[old].key])
        for old in order
    ]
