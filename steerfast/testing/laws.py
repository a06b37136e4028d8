"""What operators promise in closed form: no reference is asked, only another call or a projection.

A law takes a backend, that is anything with the functions of ``steerfast.ops``, and asserts.
``LAWS`` has them all by name:

    for law in LAWS.values():
        law(my_backend, dtype=torch.bfloat16, width=576)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfast.ops.records import GateKind, Op, Read
from steerfast.testing import recipes
from steerfast.testing.bounds import RELATIVE
from steerfast.testing.case import bits
from steerfast.testing.trial import ROWS, Trial, assert_near

Law = Callable[..., None]


def nothing_is_identity(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """A slot without delta and reads keeps the bits whatever its finish; zero coefficients keep the values."""
    for finish in ("none", "preserve", "shrink"):
        trial = Trial(dtype, width, device)
        h = trial.steered(backend, trial.case((), finish=finish))
        assert torch.equal(bits(h), bits(trial.h)), (
            f"an empty slot with finish {finish} changes bits"
        )
        v = trial.maker.v()
        zero = recipes.joined(
            recipes.ablate(v, 0.0),
            recipes.add_relative(v, 0.0),
            recipes.signed(v, 0.0),
            recipes.constant(v, 0.0),
            recipes.slerp(v, 0.0) if width > 1 else [],
            [Read(Op.KEY, v)],
        )
        case = trial.case(zero, finish=finish, delta=torch.zeros(width))
        assert_near(trial.steered(backend, case), trial.h, case.tolerance, f"zeros, {finish}")
        case = trial.case([r for r in zero if r.op != Op.SLERP])
        assert torch.equal(trial.steered(backend, case), trial.h), "adding zeros changes values"


def ablation_is_a_projection(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """Once: nothing is left along v. Twice: nothing more changes."""
    trial = Trial(dtype, width, device)
    v = trial.source.direction()
    reads = recipes.ablate(trial.table.row(v))
    case = trial.case(reads)
    once = trial.steered(backend, case)
    left = case.tolerance @ v.double().abs() + RELATIVE * case.h.double().norm(dim=-1)
    assert_near(once.double() @ v.double(), torch.zeros(ROWS), left, "what ablation leaves")
    again = trial.case(reads, h=once)
    bound = again.tolerance + left[:, None] * v.double().abs()
    assert_near(trial.steered(backend, again), once, bound, "ablating twice")


def reflection_undoes_itself(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    trial = Trial(dtype, width, device)
    v = trial.source.direction()
    _undone(backend, trial, recipes.reflect(trial.table.row(v)), [v], None)


def rotation_is_undone(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """By a, then by -a."""
    trial = Trial(dtype, width, device)
    if width == 1:
        return
    b1, b2 = trial.source.plane()
    rows = trial.table.row(b1), trial.table.row(b2)
    for angle in (0.3, math.pi / 2, -2.0):
        back = recipes.rotate_by(*rows, -angle)
        _undone(backend, trial, recipes.rotate_by(*rows, angle), [b1, b2], back)


def _undone(
    backend: Any,
    trial: Trial,
    reads: Sequence[Read],
    directions: Sequence[Tensor],
    back: Sequence[Read] | None,
) -> None:
    """reads, then back (or reads again), is the identity. The second step turns the first one's error e
    within the directions' span: at most 2 <|e|, |b|> |b'| more for any two of them."""
    case = trial.case(reads)
    there = trial.steered(backend, case)
    moved = (there.double() - trial.h.double()).norm(dim=-1)
    assert (moved > 1e-3 * trial.h.double().norm(dim=-1)).any(), "nothing was turned"
    again = trial.case(back or reads, h=there)
    span = torch.stack([b.double().abs() for b in directions])
    spread = 2.0 * (case.tolerance @ span.sum(0))[:, None] * span.sum(0)
    bound = again.tolerance + case.tolerance + spread
    assert_near(trial.steered(backend, again), trial.h, bound, "there and back")


def targets_are_reached(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """clamp lands on its target, floor not below it, ceiling not above it; a kept row keeps its values."""
    trial = Trial(dtype, width, device)
    v = trial.source.direction()
    row, exact = trial.table.row(v), v.double()
    before = trial.h.double() @ exact
    for target in (0.0, 12.5, float(before.median())):
        for recipe in (recipes.clamp, recipes.floor, recipes.ceiling):
            case = trial.case(recipe(row, target))
            out = trial.steered(backend, case)
            after = out.double() @ exact
            left = case.tolerance @ exact.abs() + RELATIVE * case.h.double().norm(dim=-1)
            wanted = torch.full_like(before, target)
            if recipe is recipes.floor:
                wanted = before.clamp(min=target)
            elif recipe is recipes.ceiling:
                wanted = before.clamp(max=target)
            assert_near(after, wanted, left, f"{recipe.__name__} to {target}")
            if recipe is not recipes.clamp:
                kept = (wanted == before) & ((before - target).abs() > left)
                assert torch.equal(out[kept], trial.h[kept]), (
                    f"{recipe.__name__} moved a row within"
                )


def rotation_lands(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """rotate_to: the part in the plane keeps its length and points to the angle."""
    trial = Trial(dtype, width, device)
    if width == 1:
        return
    b1, b2 = trial.source.plane()
    rows = trial.table.row(b1), trial.table.row(b2)
    length = torch.hypot(trial.h.double() @ b1.double(), trial.h.double() @ b2.double())
    for angle in (0.0, 1.0, math.pi, -2.5):
        case = trial.case(recipes.rotate_to(*rows, angle))
        out = trial.steered(backend, case).double()
        for b, share in ((b1.double(), math.cos(angle)), (b2.double(), math.sin(angle))):
            left = case.tolerance @ b.abs() + RELATIVE * case.h.double().norm(dim=-1)
            assert_near(out @ b, share * length, left, f"rotation to {angle}")


def slerp_moves_along_the_circle(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """The length stays, the angle to v becomes 1 - t of what it was; t = 1 ends at n v."""
    trial = Trial(dtype, width, device)
    if width < 3:
        return
    v = trial.source.direction()
    row, exact, h = trial.table.row(v), v.double(), trial.h.double()
    norm = h.norm(dim=-1)
    angle = torch.acos((h @ exact) / norm)
    for share in (0.25, 0.5, 1.0, -0.2):
        case = trial.case(recipes.slerp(row, share))
        out = trial.steered(backend, case).double()
        error = case.tolerance.norm(dim=-1) + RELATIVE * norm
        assert_near(out.norm(dim=-1), norm, error, f"length after slerp by {share}")
        left = case.tolerance @ exact.abs() + RELATIVE * norm
        assert_near(out @ exact, norm * ((1 - share) * angle).cos(), left, f"slerp by {share}")


def finishes_keep_lengths(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """preserve keeps |h|, shrink never exceeds it, and leaves alone what is no longer than h, to the bit."""
    trial = Trial(dtype, width, device)
    before = trial.h.double().norm(dim=-1)
    for scale in (0.02, 1.0, 4.0):
        delta, reads = trial.maker.delta(scale), recipes.clamp(trial.maker.v(), 30.0)
        plain = trial.steered(backend, trial.case(reads, delta=delta))
        for finish in ("preserve", "shrink"):
            case = trial.case(reads, finish=finish, delta=delta)
            out = trial.steered(backend, case)
            after, slack = out.double().norm(dim=-1), case.tolerance.norm(dim=-1)
            if finish == "preserve":
                assert_near(after, before, slack, "the length that preserve keeps")
                continue
            assert (after <= before + slack).all(), "shrink lets a row grow"
            short = plain.double().norm(dim=-1) < before - 2.0 * slack
            assert torch.equal(bits(out[short]), bits(plain[short])), "shrink changes a short row"


def order_of_reads_is_irrelevant(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """A permuted program, partners and keys renumbered: the same row but for the order of its sum."""
    trial = Trial(dtype, width, device)
    if width == 1:
        return
    pool = [trial.maker.plane(), trial.maker.plane()]
    program = recipes.joined(
        recipes.rotate_by(*pool[0], 0.7),
        recipes.gated(recipes.constant(trial.maker.v(), 20.0), GateKind.SIGMOID, pool[1][0], 1.0),
        recipes.rotate_to(*pool[1], -1.2),
        recipes.clamp(trial.maker.v(), 40.0),
        recipes.linear(trial.maker.a(), trial.maker.v(), 0.4, 3.0),
    )
    case = trial.case(program)
    first = trial.steered(backend, case)
    for seed in range(3):
        order = torch.randperm(len(program), generator=torch.Generator().manual_seed(seed))
        again = trial.steered(backend, trial.case(recipes.permuted(program, order.tolist())))
        assert_near(again, first, 2.0 * case.tolerance, f"reads in the order {order.tolist()}")


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        nothing_is_identity,
        ablation_is_a_projection,
        reflection_undoes_itself,
        rotation_is_undone,
        targets_are_reached,
        rotation_lands,
        slerp_moves_along_the_circle,
        finishes_keep_lengths,
        order_of_reads_is_irrelevant,
    )
}
