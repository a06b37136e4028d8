"""What the slots of a case do: families of operator mixes, each a function that fills a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from steerfast.ops.records import FINISH_CODES, MAX_READS, GateKind
from steerfast.testing import recipes
from steerfast.testing.bounds import MARGIN
from steerfast.testing.operators import OPERATORS, Maker
from steerfast.testing.streams import uniform_axis, unit


def _alone(name: str) -> Callable[[Maker], None]:
    """One operator: with every finish, beside a delta, and three of its kind at once."""

    def fill(maker: Maker) -> None:
        if name == "slerp" and maker.source.width == 1:
            maker.table.slot(maker.delta())  # a line has no great circle
            return
        operator = OPERATORS[name]
        for finish in FINISH_CODES:
            maker.table.slot(None, operator(maker), finish)
        maker.table.slot(maker.delta(), operator(maker), "preserve")
        maker.table.slot(None, recipes.joined(*(operator(maker) for _ in range(3))))

    return fill


def _gate(gate: GateKind) -> Callable[[Maker], None]:
    def fill(maker: Maker) -> None:
        for finish in FINISH_CODES:
            maker.table.slot(
                None, maker.gated(recipes.constant(maker.v(), maker.level()), gate), finish
            )
        for name in ("clamp", "map", "feature", "rotate_to", "relative"):
            maker.table.slot(maker.delta(), maker.gated(OPERATORS[name](maker), gate))
        if maker.source.width > 1:
            maker.table.slot(None, maker.gated(OPERATORS["slerp"](maker), gate))

    return fill


def additive(maker: Maker) -> None:
    """Deltas alone: short, as long as the stream, longer, with each finish; and a slot with nothing."""
    for finish in FINISH_CODES:
        for scale in (0.01, 0.5, 3.0):
            maker.table.slot(maker.delta(scale), (), finish)
    maker.table.slot(None, (), "preserve")


def mixed(maker: Maker) -> None:
    """A bit of everything in one batch: what a busy server's table looks like."""
    additive(maker)
    for name in OPERATORS:
        if name != "slerp" or maker.source.width > 1:
            maker.table.slot(None, OPERATORS[name](maker))
    for finish in FINISH_CODES:
        maker.table.slot(maker.delta(), maker.program(3, 6), finish)
    maker.table.slot(None, maker.program(14))


def each(maker: Maker) -> None:
    """Every operator in a slot of its own, first those that look at signs and lengths; then every gate."""
    names = ["signed", "slerp", "relative", "clamp", "rotate_to", "feature"]
    names += [name for name in OPERATORS if name not in names]
    for place, name in enumerate(names):
        finish = list(FINISH_CODES)[place % 3]
        if name != "slerp" or maker.source.width > 1:
            maker.table.slot(None, OPERATORS[name](maker), finish)
    for gate in (GateKind.COSINE, GateKind.HARD, GateKind.SIGMOID):
        maker.table.slot(None, maker.gated(recipes.constant(maker.v(), maker.level()), gate))


def programs(maker: Maker) -> None:
    """Several programs of each length from 1 to 16, each with some finish, half of them with a delta."""
    finishes = list(FINISH_CODES)
    for length in range(1, MAX_READS + 1):
        delta = maker.delta() if length % 2 else None
        reads = maker.program(length, max(length, 3))[:MAX_READS]
        maker.table.slot(delta, reads, finishes[length % 3])


def sixteen(maker: Maker) -> None:
    """Programs filled to the last place, which holds a clamp of its own."""
    for finish in FINISH_CODES:
        head = maker.program(11, MAX_READS - 1)
        while len(head) < MAX_READS - 1:
            head = recipes.joined(head, OPERATORS["ablate"](maker))
        maker.table.slot(maker.delta(), recipes.joined(head, OPERATORS["clamp"](maker)), finish)


def far_references(maker: Maker) -> None:
    """Keys and partners at the other end of the program, before and after their reads."""
    source = maker.source
    for _ in range(3):
        program = maker.program(12, MAX_READS)
        order = sorted(range(len(program)), key=lambda _: source.uniform(0.0, 1.0))
        maker.table.slot(None, recipes.permuted(program, order), "none")
    maker.table.slot(maker.delta(), recipes.permuted(program, order[::-1]), "shrink")


def keys_of_reads(maker: Maker) -> None:
    """One dot that opens several gates, and a read with an effect of its own as key of others."""
    bias = 0.2 * maker.level()
    clamp = recipes.clamp(maker.v(), maker.level())[0]
    constants = [recipes.constant(maker.v(), maker.level())[0] for _ in range(2)]
    for gate, threshold in ((GateKind.HARD, bias), (GateKind.COSINE, 0.05)):
        others = [replace(read, gate=gate, key=0, bias=threshold) for read in constants]
        maker.table.slot(None, [clamp, *others])
    keys_only = recipes.gated([], GateKind.HARD, maker.v(), 0.0) * 3
    maker.table.slot(None, keys_only)
    maker.table.slot(maker.delta(), keys_only, "preserve")


def near_parallel(maker: Maker) -> None:
    """Directions that differ in their last digits: contributions that nearly cancel, or add up."""
    source, table = maker.source, maker.table
    base = source.direction()
    rows = [table.row(unit(base + 1e-4 * i * source.direction())) for i in range(4)]
    for finish in FINISH_CODES:
        level = maker.level()
        table.slot(
            None,
            recipes.joined(
                recipes.linear(rows[0], rows[1], 5.0),
                recipes.linear(rows[2], rows[3], -5.0),
                recipes.clamp(rows[1], level),
                recipes.ablate(rows[2], 0.5),
            ),
            finish,
        )
    table.slot(5.0 * maker.level() * base, recipes.clamp(rows[0], maker.level()))


def axes(maker: Maker) -> None:
    """Slerp towards an axis whose arithmetic is exact; see ``streams``' axis rows."""
    axis = maker.table.row(uniform_axis(maker.source.width))
    for share in (0.5, 1.0, -0.3, 0.0):
        maker.table.slot(None, recipes.slerp(axis, share))
    maker.table.slot(maker.delta(), recipes.slerp(axis, 0.7))


def thresholds(maker: Maker) -> None:
    """A slot for every row, with a threshold just beside the row's own dot (1.5 to 4 times MARGIN), and
    kinks of floor and ceiling right at it. For rows in slots of their own."""
    source, table = maker.source, maker.table
    for i, h in enumerate(maker.h.double()):
        key = source.direction()
        row = table.row(key)
        norm, k = float(h.norm()), float(h @ key.double())
        side = (1.0, -1.0)[i // 6 % 2] * source.uniform(1.5, 4.0) * MARGIN
        near = -k + side * (norm + abs(k))  # a bias
        one = recipes.constant(maker.v(), maker.level())
        kinds = [
            recipes.gated(one, GateKind.HARD, row, near),
            recipes.gated(one, GateKind.COSINE, row, k / norm + 2.0 * side),
            recipes.feature_clamp(row, row, maker.level(), 0.0, k + side * norm),
            recipes.feature_clamp(row, row, maker.level(), near, 0.0),
            recipes.floor(row, k),
            recipes.ceiling(row, k),
        ]
        table.slot(None, kinds[i % len(kinds)])


FAMILIES: dict[str, Callable[[Maker], None]] = {
    "mixed": mixed,
    "additive": additive,
    **{name: _alone(name) for name in OPERATORS},
    **{f"gate-{kind.name.lower()}": _gate(kind) for kind in GateKind if kind},
    "programs": programs,
    "sixteen": sixteen,
    "far-references": far_references,
    "keys": keys_of_reads,
    "near-parallel": near_parallel,
}
