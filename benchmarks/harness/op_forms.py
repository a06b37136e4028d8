"""What the op benchmarks run: a steering as a plan through the table, and as the eager code it replaces.

additive    one constant vector (``additive16``: sixteen of them, which collapse into one row)
mixed       eight reads: a plane ablated, clamp, floor, signed, relative to the norm, an addition behind a gate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from steerfast import Gate, Plan, SteeringVector, Term
from steerfast.ops.reference import Steering
from steerfast.plans.sites import site_index
from steerfast.table.table import Table

LAYER = 0
SITE = site_index("resid_post", LAYER)


@dataclass(frozen=True)
class Form:
    """plans: one per slot. eager: h, in its dtype -> the steered stream, for plan 0, term by term as hooks do;
    batched: the same as two matrix products, or None where there is nothing to batch."""

    plans: tuple[Plan, ...]
    eager: Callable[[Tensor], Tensor]
    batched: Callable[[Tensor], Tensor] | None


def vector(width: int, seed: int) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {LAYER: torch.randn(width, generator=generator)})


def operands(
    width: int, rows: int, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x and residual [N, D], and a norm's weight [D], at random."""
    generator = torch.Generator().manual_seed(seed)
    # One by one: after a draw beyond 32 MiB the C library would map what the op returns anew at each call, which takes longer.
    normal = lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)  # noqa: E731
    return normal(rows, width), normal(rows, width), 1 + normal(width) / 10


def steering(plans: tuple[Plan, ...], width: int, slots: Tensor, device: str) -> Steering:
    """The plans in a table; row n in the slot of plan ``slots[n]``, -1 for none."""
    return _rows_of(*_in_a_table(plans, width, device), slots)


def shared_steering(
    form: str, width: int, slots: Tensor, device: str, *, plans: int = 1
) -> Steering:
    """So many plans of a form, in a table that is made once: what differs from call to call is who is in which slot."""
    return _rows_of(*_shared_table(form, width, plans, device), slots)


@lru_cache(maxsize=4)
def _shared_table(form: str, width: int, plans: int, device: str) -> tuple[Table, Tensor]:
    made = FORMS[form](width, torch.float32, device, slots=plans).plans
    return _in_a_table(made, width, device)


def _in_a_table(plans: tuple[Plan, ...], width: int, device: str) -> tuple[Table, Tensor]:
    """The table, and the slot of each plan; last of all -1."""
    table = Table(1, width, slots=len(plans), bank_rows=17 * len(plans), device=device)
    return table, torch.tensor(
        [table.acquire(plan).slots[0] for plan in plans] + [-1], dtype=torch.int32
    )


def _rows_of(table: Table, held: Tensor, slots: Tensor) -> Steering:
    device = table.device
    row_slot, gain = held[slots].to(device), torch.ones(len(slots), device=device)
    return Steering(row_slot, gain, table.records[SITE], table.reads, table.bank)


def additive(width: int, dtype: torch.dtype, device: str, *, count: int, slots: int = 1) -> Form:
    vectors = [[vector(width, 100 * s + k) for k in range(count)] for s in range(slots)]
    plans = tuple(Plan(tuple(Term(one, 2.0 / count) for one in row)) for row in vectors)
    scaled = [2.0 / count * one.at(LAYER).to(device, dtype) for one in vectors[0]]

    def eager(h: Tensor) -> Tensor:
        for one in scaled:
            h = h + one
        return h

    return Form(plans, eager, None)


def mixed(width: int, dtype: torch.dtype, device: str, *, slots: int = 1) -> Form:
    plans = tuple(_mixed_plan([vector(width, 100 * s + k) for k in range(8)]) for s in range(slots))
    directions = torch.stack([vector(width, k).at(LAYER) for k in range(8)]).to(device)
    unit = directions / directions.norm(dim=-1, keepdim=True)
    basis = torch.linalg.qr(unit[:2].T).Q.T.contiguous()
    sources = torch.cat([basis, unit[2:5], directions[6:7]])
    targets = torch.cat([basis, unit[2:6], 2.0 * directions[7:8]])

    def eager(h: Tensor) -> Tensor:
        """One term after the other, each reading the row as it was."""
        wide = h.float()
        y = wide - (wide @ basis.T) @ basis
        y = y + (1.0 - wide @ unit[2])[:, None] * unit[2]
        y = y + (2.0 - wide @ unit[3]).clamp(min=0.0)[:, None] * unit[3]
        y = y + 1.5 * torch.sign(wide @ unit[4])[:, None] * unit[4]
        y = y + 0.1 * wide.norm(dim=-1, keepdim=True) * unit[5]
        y = y + (wide @ directions[6] > 0).float()[:, None] * (2.0 * directions[7])
        return y.to(h.dtype)

    def batched(h: Tensor) -> Tensor:
        wide = h.float()
        p = wide @ sources.T
        coefficients = torch.stack(
            [
                -p[:, 0],
                -p[:, 1],
                1.0 - p[:, 2],
                (2.0 - p[:, 3]).clamp(min=0.0),
                1.5 * torch.sign(p[:, 4]),
                0.1 * wide.norm(dim=-1),
                (p[:, 5] > 0).float(),
            ],
            -1,
        )
        return torch.addmm(wide, coefficients, targets).to(h.dtype)

    return Form(plans, eager, batched)


def _mixed_plan(v: list[SteeringVector]) -> Plan:
    return Plan(
        (
            Term(v[0], operator="ablate"),
            Term(v[1], operator="ablate"),
            Term(v[2], operator="clamp", target=1.0),
            Term(v[3], operator="floor", target=2.0),
            Term(v[4], 1.5, operator="signed"),
            Term(v[5], 0.1, operator="add_relative"),
            Term(v[7], 2.0, gate=Gate("hard", v[6])),
        )
    )


FORMS: dict[str, Callable[..., Form]] = {
    "additive": lambda *where, slots=1: additive(*where, count=1, slots=slots),
    "additive16": lambda *where, slots=1: additive(*where, count=16, slots=slots),
    "mixed": mixed,
}
