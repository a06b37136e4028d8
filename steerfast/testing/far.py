"""Laws of rows that float32's squares cannot hold, and of rows that are not finite. ``FAR_LAWS`` has them by name; see
``laws``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfast.ops import reference
from steerfast.ops.records import GateKind, Op, Read
from steerfast.testing import recipes
from steerfast.testing.bounds import RELATIVE, UNDERFLOW
from steerfast.testing.case import ulp
from steerfast.testing.operators import OPERATORS
from steerfast.testing.trial import ROWS, Trial, assert_near

Law = Callable[..., None]
# |h|, then |delta|: beyond 1.8e19 and below 1e-22 a sum of squares leaves float32.
LENGTHS = (1e-37, 1e-23, 1.0, 2e19, 1e37)
FINISHES = ("none", "preserve", "shrink")


def finishes_reach_far(
    backend: Any,
    dtype: torch.dtype,
    width: int,
    device: str = "cpu",
    *,
    lengths: Sequence[float] = LENGTHS,
) -> None:
    """y |h|/|y| in closed form, whatever the lengths of h and y; beside it an ordinary row, as it is alone."""
    for h, delta in _far_rows(dtype, width, lengths):
        for finish in ("preserve", "shrink"):
            trial = Trial(dtype, width, device)
            out = trial.steered(backend, trial.case((), h=h, finish=finish, delta=delta))
            exact, y = h.double(), (h.float() + delta).double()
            before, after = exact.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
            factor = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
            wanted = y * (factor.clamp(max=1.0) if finish == "shrink" else factor)
            bound = 0.5 * ulp(wanted, dtype) + RELATIVE * wanted.abs() + UNDERFLOW
            what = f"{finish} of {float(before[0]):.0e} that became {float(after[0]):.0e}"
            assert_near(out, wanted, bound, what)
            beside = trial.steered(backend, trial.case((), h=h[-1:], finish=finish, delta=delta))
            assert torch.equal(out[-1:], beside), f"{what}: the ordinary row beside it changes"


def _far_rows(
    dtype: torch.dtype, width: int, lengths: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(h, delta) with |h| and |delta| of ``lengths``, as far as the dtype holds them; the last row is ordinary."""
    source = Trial(dtype, width, "cpu").source
    for length in lengths:
        if not 1e-3 < length < 1e3 and dtype is torch.float16:
            continue
        for of_delta in lengths:
            h = length * torch.stack([source.direction() for _ in range(ROWS)]).double()
            h[-1] = source.direction()
            yield h.to(dtype), (of_delta * source.direction().double()).float()


def lengths_reach_far(
    backend: Any,
    dtype: torch.dtype,
    width: int,
    device: str = "cpu",
    *,
    lengths: Sequence[float] = (1e-37, 1e-30, 1e-22, 1e19, 1e25, 1e36),
) -> None:
    """What reads |h|: ``c n v``, and a cosine gate that is open at one side of its key and closed at the other."""
    if dtype is torch.float16:
        return
    for length in lengths:
        trial = Trial(dtype, width, device)
        v, key = trial.source.direction(), trial.source.direction()
        row, row_key = trial.table.row(v), trial.table.row(key)
        h = torch.stack([length * key, -length * key]).to(dtype)
        n = h.double().norm(dim=-1, keepdim=True)
        relative = recipes.add_relative(row, 0.5)
        for reads, share in (
            (relative, torch.tensor([[0.5], [0.5]])),
            (recipes.gated(relative, GateKind.COSINE, row_key, 0.5), torch.tensor([[0.5], [0.0]])),
            (recipes.gated(relative, GateKind.COSINE, row_key, -0.5), torch.tensor([[0.5], [0.0]])),
        ):
            out = trial.steered(backend, trial.case(reads, h=h))
            wanted = h.double() + share.double() * n * v.double()
            size = v.double().abs() + key.double().abs()
            bound = 0.5 * ulp(wanted, dtype) + 2.0 * RELATIVE * n * size + UNDERFLOW
            assert_near(out, wanted, bound, f"a read of a length of {length:.0e}")


def turns_reach_far(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """``rotate_to`` keeps the length in its plane, however long or short."""
    if dtype is torch.float16 or width == 1:
        return
    for length in (1e-30, 1e-22, 1e19, 1e25, 1e36):
        trial = Trial(dtype, width, device)
        b1, b2 = trial.source.plane()
        h = (length * (0.6 * b1 + 0.8 * b2))[None].to(dtype)
        case = trial.case(recipes.rotate_to(trial.table.row(b1), trial.table.row(b2), 1.0), h=h)
        assert_near(
            trial.steered(backend, case), case.stream, case.tolerance, f"turned at {length:.0e}"
        )


def not_finite_is_the_same(
    backend: Any,
    dtype: torch.dtype,
    width: int,
    device: str = "cpu",
    *,
    finishes: Sequence[str] = FINISHES,
) -> None:
    """A row with NaN or infinities: NaN and infinities where the reference has them, for every operator, gate and
    finish, and whatever the row beside it does."""
    trial = Trial(dtype, width, device)
    h = trial.h[:1].repeat(6, 1)
    h[0, width // 2] = torch.nan
    h[1, width // 2] = torch.inf
    h[2, 0] = -torch.inf
    h[3, 0], h[3, -1] = torch.inf, -torch.inf
    h[4, 0], h[4, -1] = torch.nan, torch.inf
    for place, (name, make) in enumerate(OPERATORS.items()):
        if name == "slerp" and width == 1:
            continue
        for gate in (GateKind.OPEN, list(GateKind)[1 + place % 3]):
            reads = make(trial.maker)
            if gate:
                reads = trial.maker.gated(reads, gate)
            # One that reads the row's length and writes nothing.
            reads = recipes.joined(reads, [Read(Op.RELATIVE, -1, -1, slope=1.0)])
            finish = finishes[(place + gate) % len(finishes)]
            case = trial.case(reads, h=h, finish=finish)
            what = f"{name}, {gate.name}, {finish}"
            _assert_same_set(trial.steered(backend, case), case.h, case, what)
    for finish in finishes:
        case = trial.case((), h=h, finish=finish, delta=trial.maker.delta())
        _assert_same_set(trial.steered(backend, case), case.h, case, f"delta, {finish}")


def _assert_same_set(got: Tensor, h: Tensor, case: Any, what: str) -> None:
    # One row at a time: what is asked does not depend on other rows.
    for n in range(len(h)):
        one = case.steering._replace(
            row_slot=case.steering.row_slot[n : n + 1], row_gain=case.steering.row_gain[n : n + 1]
        )
        wanted = reference.steer(h[n : n + 1], one)[0]
        assert torch.equal(got[n].isnan(), wanted.isnan()), f"{what}: other NaN in row {n}"
        assert torch.equal(got[n].isinf(), wanted.isinf()), f"{what}: other infinities in row {n}"


def norms_are_the_models(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """RMSNorm is LlamaRMSNorm to its end: where float32 does not hold the sum of squares, the norm is 0; where it is
    small, eps is what is left."""
    if dtype is torch.float16:
        return
    row = Trial(dtype, width, "cpu").source.direction()
    x = torch.stack([1e25 * row, 1e-30 * row]).to(dtype)
    _, normed = backend.add_rms_norm(
        torch.zeros_like(x).to(device),
        x.to(device),
        torch.ones(width, dtype=dtype, device=device),
        1e-6,
    )
    wanted = torch.stack([torch.zeros(width), 1e3 * x[1].float()]).double()
    bound = ulp(wanted, dtype) + RELATIVE * wanted.abs()
    assert_near(normed.cpu(), wanted, bound, "the norm of what leaves float32")


FAR_LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        finishes_reach_far,
        lengths_reach_far,
        turns_reach_far,
        not_finite_is_the_same,
        norms_are_the_models,
    )
}
