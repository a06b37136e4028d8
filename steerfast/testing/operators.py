"""Random operators: every kind of read and gate, scaled to the streams that they will steer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from steerfast.ops.records import MAX_READS, GateKind, Read
from steerfast.testing import recipes
from steerfast.testing.streams import Source
from steerfast.testing.table import Table

Operator = Callable[["Maker"], list[Read]]


class Maker(NamedTuple):
    """Random operators, scaled to the streams of ``source``, with their vectors put into ``table``."""

    source: Source
    table: Table
    outlier: float
    h: Tensor  # the rows to be steered, of which ``thresholds`` takes the dots

    def v(self) -> int:
        """A bank row of norm 1."""
        return self.table.row(self.source.direction(self.outlier))

    def a(self) -> int:
        """A bank row of any norm."""
        return self.table.row(self.source.uniform(0.2, 3.0) * self.source.direction(self.outlier))

    def plane(self) -> tuple[int, int]:
        first, second = self.source.plane()
        return self.table.row(first), self.table.row(second)

    def coefficient(self) -> float:
        return self.source.uniform(-1.5, 1.5)

    def level(self) -> float:
        """About as large as a dot with the stream."""
        return self.source.uniform(-0.3, 0.3) * self.source.typical_norm()

    def delta(self, scale: float = 0.5) -> Tensor:
        size = scale * self.source.typical_norm() * self.source.uniform(0.2, 1.5)
        return size * self.source.direction(self.outlier)

    def operator(self) -> list[Read]:
        """Any one operator; in one of two cases gated."""
        names = [name for name in OPERATORS if name != "slerp" or self.source.width > 1]
        reads = OPERATORS[names[self.source.integer(0, len(names))]](self)
        return reads if self.source.integer(0, 2) else self.gated(reads)

    def gated(self, reads: Sequence[Read], gate: GateKind | None = None) -> list[Read]:
        gate = gate or GateKind(self.source.integer(1, 4))
        if gate == GateKind.COSINE:
            return recipes.gated(reads, gate, self.v(), self.source.uniform(-0.2, 0.2))
        if gate == GateKind.SIGMOID:  # a key that keeps the gate between its ends
            soft = self.source.direction() * (4.0 / self.source.typical_norm())
            return recipes.gated(reads, gate, self.table.row(soft), self.source.uniform(-2.0, 2.0))
        return recipes.gated(reads, GateKind.HARD, self.a(), 0.3 * self.level())

    def program(self, at_least: int, at_most: int = MAX_READS) -> list[Read]:
        """Random operators, joined until there are so many reads."""
        reads: list[Read] = []
        while len(reads) < at_least:
            longer = recipes.joined(reads, self.operator())
            if len(longer) <= at_most:
                reads = longer
        return reads


OPERATORS: dict[str, Operator] = {
    "ablate": lambda m: recipes.ablate(m.v(), m.source.uniform(0.3, 1.0)),
    "reflect": lambda m: recipes.reflect(m.v()),
    "clamp": lambda m: recipes.clamp(m.v(), m.level()),
    "floor": lambda m: recipes.floor(m.v(), m.level()),
    "ceiling": lambda m: recipes.ceiling(m.v(), m.level()),
    "constant": lambda m: recipes.constant(m.v(), m.level()),
    "signed": lambda m: recipes.signed(m.v(), m.level()),
    "relative": lambda m: recipes.add_relative(m.v(), m.coefficient()),
    "map": lambda m: recipes.linear(m.a(), m.v(), m.coefficient(), m.level()),
    "feature": lambda m: recipes.feature_clamp(
        m.a(), m.v(), m.level(), 0.3 * m.level(), 0.1 * abs(m.level())
    ),
    "rotate_by": lambda m: recipes.rotate_by(*m.plane(), m.source.uniform(-3.0, 3.0)),
    "rotate_to": lambda m: recipes.rotate_to(*m.plane(), m.source.uniform(-3.0, 3.0)),
    "slerp": lambda m: recipes.slerp(m.v(), m.source.uniform(-0.5, 1.0)),
}
