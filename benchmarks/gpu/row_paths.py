"""What a row costs in machine code: the shortest way through a kernel's loop over rows that does what such a row needs.

A way is told by its accesses: it loads the next row (past L1) and, where the row is steered, what is added; it stores
the stream and its norm, and meets at one barrier. Of the ways with these, the one with most roundings is a row's
(LlamaRMSNorm's order has one more than vLLM's); of equals the shortest, so without the routes, which come for 32 rows at
a time. An only row's has most small loads: its route. Calls are the slow ways of division and square roots, for numbers
at the edge, and left out. An instruction that its guard switches off is issued, and counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gpu.machine_code import Instruction, Kernel


class Accesses(NamedTuple):
    rows: int = 0  # vectors of x and residual
    tables: int = 0  # other vectors: of the bank, and of the weight where it is read for every row
    stores: int = 0
    barriers: int = 0

    def __add__(self, other: Accesses) -> Accesses:  # type: ignore[override]
        return Accesses(*(a + b for a, b in zip(self, other, strict=True)))

    def within(self, other: Accesses) -> bool:
        return all(a <= b for a, b in zip(self, other, strict=True))


def _accesses(block: Sequence[Instruction]) -> Accesses:
    def number(pattern: str) -> int:
        return sum(bool(re.match(pattern, f"{one.opcode} {one.operands}")) for one in block)

    rows = number(r"LDG?\.E\.(?:\w+\.)*NA\.(?:\w+\.)*128")
    tables = number(r"LDG?\.E\..*128") - rows
    # What stores zeros empties x, in one of the forms; elsewhere it is switched off.
    return Accesses(rows, tables, number(r"STG?\.E\..*128(?!.* RZ$)"), number("BAR"))


def _roundings(block: Sequence[Instruction]) -> int:
    packed = re.compile(r"F2FP.*PACK|HADD2|HMUL2|HFMA2(?!\.MMA)|HFMA2\.MMA\.BF16")
    return sum(bool(packed.match(one.opcode)) and "-RZ, RZ" not in one.operands for one in block)


def _small_loads(block: Sequence[Instruction]) -> int:
    return sum(one.name in ("LDG", "LD") and "128" not in one.opcode for one in block)


def _best(kernel: Kernel, begin: int, wanted: Accesses, closed: bool) -> list[int] | None:
    """The blocks of the best way from ``begin`` back to it (closed) or to the kernel's end."""
    facts = {
        head: (
            _accesses(block),
            (-_roundings(block), 0 if closed else -_small_loads(block), len(block)),
        )
        for head, block in kernel.blocks.items()
        if not any(one.name in ("CALL", "RET") for one in block)
    }
    cheapest: dict[tuple[int, Accesses], tuple[int, ...]] = {}
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    going = [(begin, Accesses(), (0, 0, 0), ())]
    while going:
        head, accesses, cost, way = going.pop()
        if head not in facts or head in way:
            continue
        accesses += facts[head][0]
        cost = tuple(a + b for a, b in zip(cost, facts[head][1], strict=True))
        if not accesses.within(wanted) or cost >= cheapest.get((head, accesses), (1,)):
            continue
        cheapest[head, accesses] = cost
        way = (*way, head)
        out = list(kernel.ways_out(head))
        if accesses == wanted and (
            begin in out if closed else kernel.blocks[head][-1].name == "EXIT"
        ):
            found.append((cost, way))
        going += [(follower, accesses, cost, way) for follower in out]
    return list(min(found)[1]) if found else None


def _along(kernel: Kernel, heads: Sequence[int]) -> list[Instruction]:
    return [instruction for head in heads for instruction in kernel.blocks[head]]


def a_row_of_many(kernel: Kernel, wanted: Accesses) -> list[Instruction]:
    """The instructions of a row that is neither the first nor the last of its block."""
    back = {target for head in kernel.blocks for target in kernel.ways_out(head) if target <= head}
    for head in sorted(back):
        if way := _best(kernel, head, wanted, True):
            return _along(kernel, way)
    raise ValueError(f"{kernel.name} has no loop that does {wanted}")


def an_only_row(kernel: Kernel, wanted: Accesses) -> list[Instruction]:
    """All instructions of a block that has one row."""
    way = _best(kernel, kernel.instructions[0].address, wanted, False)
    if way is None:
        raise ValueError(f"{kernel.name} has no way that does {wanted} and ends")
    return _along(kernel, way)


def round_trips(path: Sequence[Instruction], until_store: bool = False) -> int:
    """How often a warp waits for memory, one wait after the other: it issues in order, a load takes one unit of time,
    all else none. Of a whole path, or until it first stores."""
    now, ready = 0, dict[str, int]()
    for instruction in path:
        now = max([now, *(ready.get(name, 0) for name in _registers(instruction))])
        if until_store and instruction.name in ("STG", "ST"):
            break
        if instruction.name in ("LDG", "LD"):
            for name in _named(instruction.operands.split(",")[0], _width(instruction)):
                ready[name] = now + 1
        elif instruction.operands:
            for name in _named(instruction.operands.split(",")[0], _width(instruction)):
                ready.pop(name, None)
    return now


def waits_in_a_loop(path: Sequence[Instruction]) -> int:
    """The round trips of a row when such rows follow each other."""
    return round_trips([*path] * 4) - round_trips([*path] * 3)


def _width(instruction: Instruction) -> int:
    """Registers of an operand that is not an address."""
    opcode = instruction.opcode
    return 4 if "128" in opcode else 2 if re.search(r"\.64|WIDE|CS2R", opcode) else 1


def _named(operand: str, width: int) -> Iterator[str]:
    for kind, first, pair in re.findall(r"\b(U?[RP])(\d+)(\.64)?", operand):
        parts = 2 if pair else 1 if "[" in operand or "P" in kind else width
        yield from (f"{kind}{int(first) + part}" for part in range(parts))


def _registers(instruction: Instruction) -> Iterator[str]:
    """All that an instruction names; a load does not wait for what it fills."""
    if instruction.guard:
        yield instruction.guard.lstrip("@!")
    skip = 1 if instruction.name in ("LDG", "LD") else 0
    for operand in instruction.operands.split(",")[skip:]:
        yield from _named(operand, _width(instruction))
