"""From operators to reads: what the terms of one site and phase make a kernel compute.

Constant terms do not come here unless they are gated. Directions are float64 until they are rounded,
once, to the float32 of a bank row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.ops.records import MAX_READS, GateKind, Op, Read
from steerfast.plans.term import Gate, Term

# Directions whose span has a dimension less than their number: singular values below this, of unit
# vectors, are rounding of the float32 that they came in.
DEPENDENT = 1e-6


class LoweredRead(NamedTuple):
    """A read whose bank rows are not placed yet: source and target, [D] float32, or None."""

    read: Read
    source: Tensor | None
    target: Tensor | None


def program(
    terms: Sequence[tuple[Term, int]], scaled: Callable[[Term, int], Tensor], where: str
) -> tuple[LoweredRead, ...]:
    """The reads of (term, layer) pairs that act at one site.

    scaled: scale(v) of an ``add`` term, float64. Ablations of equal strength and gate become one subspace;
    what is constant but for one gate, or for |h|, becomes one read. Raises ValueError where more than
    MAX_READS are needed, or a number exceeds float32; ``where`` names the site.
    """
    build = _Program(where)
    groups: dict[tuple[object, ...], list[tuple[Term, int]]] = {}
    for term, layer in terms:
        groups.setdefault(_group(term, layer), []).append((term, layer))
    for members in groups.values():
        term, layer = members[0]
        place = build.gate(term.gate, layer)
        if term.operator == "ablate":
            for q in _basis(members):
                build.add(_affine(-term.coefficient), place, q, q)
        elif term.operator == "add":
            terms_and_directions = [(t.coefficient, scaled(t, at)) for t, at in members]
            offset, target = _sum(terms_and_directions)
            build.add(Read(Op.AFFINE, offset=offset), place, None, target)
        elif term.operator == "add_relative":
            slope, target = _sum([(t.coefficient, t.unit(at)) for t, at in members])
            build.add(Read(Op.RELATIVE, slope=slope), place, None, target)
        else:
            for member, at in members:
                _lower(build, member, at, place)
    return build.finished()


def _group(term: Term, layer: int) -> tuple[object, ...]:
    """Terms of equal groups merge: ablations of one strength, constants of one gate."""
    gate = () if term.gate is None else _gate_key(term.gate, layer)
    if term.operator == "ablate":
        return ("ablate", term.coefficient, gate)
    if term.operator in ("add", "add_relative"):
        return (term.operator, gate)
    return (id(term), layer)


def _gate_key(gate: Gate, layer: int) -> tuple[object, ...]:
    return (gate.kind, gate.bias, gate.threshold, gate.key.direction(layer).numpy().tobytes())


def _affine(slope: float, offset: float = 0.0, cross: float = 0.0) -> Read:
    return Read(Op.AFFINE, slope=slope, offset=offset, cross=cross)


def _lower(build: _Program, term: Term, layer: int, gate: Read) -> None:
    """One term of an operator that does not merge with others."""
    name, c, t = term.operator, term.coefficient, term.target or 0.0
    if name in ("map", "feature_clamp"):
        assert term.read is not None
        read = _affine(c, c * term.bias)
        if name == "feature_clamp":
            read = Read(Op.FEATURE, offset=term.bias, level=t, threshold=term.threshold)
        build.add(
            read, gate, term.read.direction(layer).double(), term.vector.direction(layer).double()
        )
        return
    if name in ("rotate_to", "rotate_by"):
        plane = term.plane(layer)
        assert plane is not None  # Term's own check
        assert term.angle is not None
        cosine, sine = math.cos(term.angle), math.sin(term.angle)
        if name == "rotate_to":
            reads = [Read(Op.TURN, slope=-1.0, cross=cross) for cross in (cosine, sine)]
        else:
            less = -2.0 * math.sin(term.angle / 2) ** 2  # cos - 1, without its cancellation
            reads = [_affine(less, cross=cross) for cross in (-sine, sine)]
        build.pair(reads, gate, plane)
        return
    unit = term.unit(layer)
    read = {
        "signed": Read(Op.SIGNED, slope=c),
        "clamp": _affine(-1.0, t),
        "floor": Read(Op.FLOOR, slope=-1.0, offset=t),
        "ceiling": Read(Op.CEILING, slope=-1.0, offset=t),
        "reflect": _affine(-2.0 * c),
        "slerp": Read(Op.SLERP, slope=c),
    }[name]
    build.add(read, gate, unit, unit)


class _Program:
    """Reads under construction; equal sources of key reads are taken once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._keys: list[LoweredRead] = []
        self._acting: list[LoweredRead] = []

    def gate(self, gate: Gate | None, layer: int) -> Read:
        """The gate's fields, as a read to copy them from; its key is among the key reads, which come first."""
        if gate is None:
            return Read(Op.KEY)
        key = gate.key.direction(layer).double()
        length = float(torch.linalg.vector_norm(key))
        kind, bias = GateKind.SIGMOID, gate.bias
        if gate.kind != "sigmoid":  # a threshold does not mind the key's length
            key = key / length
            kind, bias = GateKind.HARD, gate.bias / length
            if gate.kind == "cosine":
                kind, bias = GateKind.COSINE, gate.threshold
        source = self._rounded(key)
        known = [torch.equal(source, one.source) for one in self._keys if one.source is not None]
        place = known.index(True) if any(known) else len(self._keys)
        if place == len(self._keys):
            self._keys.append(LoweredRead(Read(Op.KEY), source, None))
        return Read(Op.KEY, gate=kind, key=place, bias=bias)

    def add(self, read: Read, gate: Read, source: Tensor | None, target: Tensor) -> None:
        gated = replace(read, gate=gate.gate, key=gate.key, bias=gate.bias)
        rounded = None if source is None else self._rounded(source)
        written = rounded if rounded is not None and target is source else self._rounded(target)
        self._acting.append(LoweredRead(gated, rounded, written))

    def pair(self, reads: Sequence[Read], gate: Read, plane: tuple[Tensor, Tensor]) -> None:
        """Two reads that are each other's partner; places are shifted behind the keys at the end."""
        first = len(self._acting)
        for read, other, axis in zip(reads, (first + 1, first), plane, strict=True):
            self.add(replace(read, partner=other), gate, axis, axis)

    def finished(self) -> tuple[LoweredRead, ...]:
        keys = len(self._keys)
        acting = [
            one._replace(read=replace(one.read, partner=one.read.partner + keys))
            if one.read.partner >= 0
            else one
            for one in self._acting
        ]
        if keys + len(acting) > MAX_READS:
            raise ValueError(
                f"the plan needs {keys + len(acting)} reading terms at {self._where} ({keys} of them gate "
                f"keys; a rotation takes two), but a kernel takes {MAX_READS}; steer fewer directions there"
            )
        for one in acting:
            try:
                one.read.words()
            except OverflowError as error:
                raise ValueError(
                    f"the plan has a number beyond float32 at {self._where}: {one.read}"
                ) from error
        return (*self._keys, *acting)

    def _rounded(self, direction: Tensor) -> Tensor:
        rounded = direction.to(torch.float32)
        if not torch.isfinite(rounded).all():
            raise ValueError(
                f"the plan adds more than float32 can hold at {self._where}; lower its coefficients"
            )
        return rounded


def _sum(parts: Sequence[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """(factor, direction) of sum_i factor_i * direction_i; a single part keeps its own bank row."""
    if len(parts) == 1:
        return parts[0]
    return 1.0, torch.stack([factor * direction for factor, direction in parts]).sum(0)


def _basis(members: Sequence[tuple[Term, int]]) -> list[Tensor]:
    """An orthonormal basis of what the vectors span; one vector stays itself."""
    if len(members) == 1:
        term, layer = members[0]
        return [term.unit(layer)]
    directions = torch.stack([term.unit(layer) for term, layer in members])
    _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
    return [axis for axis, size in zip(basis, sizes, strict=True) if size > DEPENDENT]
