"""Laws about bits: what may not change a row at all. ``EXACT_LAWS`` has them by name; see ``laws``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerfast.ops.records import Steering
from steerfast.testing.case import Case, bits
from steerfast.testing.suite import cases
from steerfast.testing.table import Table

Law = Callable[..., None]
SIZES = (1, 2, 7, 255, 256, 257, 600)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def assert_same(got: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    for name, a, b in zip(("stream", "normed"), got, wanted, strict=False):
        assert same_bits(a, b), f"{what}: {name} has other bits"


def _mixed(dtype: torch.dtype, width: int, rows: int) -> Case:
    return next(cases([dtype], [width], [rows]))


def unsteered_rows_keep_their_bits(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """Slot -1, gain 0 and a slot with nothing: -0, subnormals and infinities of h keep their bits, and NaN
    stays NaN, beside a table that holds NaN and gains that are not finite."""
    table = Table(width)
    nothing, something = (
        table.slot(None, (), "preserve"),
        table.slot(torch.ones(width), (), "shrink"),
    )
    tiny = torch.finfo(dtype).tiny / 3
    odd = torch.tensor([-0.0, tiny, 1.0, -torch.inf, torch.nan, -tiny, torch.inf, 0.0])
    h = odd.repeat(-(-3 * width // 8))[: 3 * width].reshape(3, width).to(dtype).to(device)
    gains = torch.tensor([torch.inf, 0.0, torch.nan])
    steering = table.steering(torch.tensor([-1, something, nothing]), gains)
    steering = Steering(*(t.to(device) for t in steering))
    zeros = torch.zeros_like(h)
    for got, wanted in (
        (backend.steer(h, steering), h),
        (backend.steer_add(zeros, h, steering), h + zeros),
    ):
        assert torch.equal(got.isnan(), h.isnan()), "NaN appears or disappears"
        there = ~h.isnan()
        assert same_bits(got[there], wanted[there]), "an unsteered row has other bits"


def forms_agree(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """All ops, functional and in place, give the bits of ``steer_add_rms_norm`` and keep their inputs."""
    for order in ("hf", "fp32"):
        arguments = _mixed(dtype, width, 9).arguments_on(device)
        x, residual, weight, eps, steering, _ = arguments
        h = residual + x
        both = backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)
        assert_same([backend.steer_add(x, residual, steering)], both, "steer_add")
        assert_same([backend.steer(h, steering)], both, "steer")
        again = backend.steer_rms_norm(h, weight, eps, steering, order)
        assert_same(again, both, "steer_rms_norm")
        plain = backend.add_rms_norm(x, residual, weight, eps, order)
        idle = steering._replace(row_slot=torch.full_like(steering.row_slot, -1))
        unsteered = backend.steer_add_rms_norm(x, residual, weight, eps, idle, order)
        assert_same(unsteered, plain, "steering nobody")
        assert same_bits(plain[0], h), "add_rms_norm: stream is not residual + x"
        for before, now in zip(
            _mixed(dtype, width, 9).arguments_on(device)[:3], arguments, strict=False
        ):
            assert same_bits(before, now), "a functional op wrote to its input"

        branch, stream = x.clone(), residual.clone()
        backend.steer_add_rms_norm_(branch, stream, weight, eps, steering, order)
        assert_same((stream, branch), both, "steer_add_rms_norm_")
        branch, stream = x.clone(), residual.clone()
        backend.add_rms_norm_(branch, stream, weight, eps, order)
        assert_same((stream, branch), plain, "add_rms_norm_")
        stream = h.clone()
        backend.steer_(stream, steering)
        assert_same([stream], both, "steer_")


def layout_is_irrelevant(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """Rows at a stride, misaligned, transposed, in more dimensions, one row as [D]; what lies between
    rows survives an op in place."""
    x, residual, weight, eps, steering, order = _mixed(dtype, width, 6).arguments_on(device)
    rest = weight, eps, steering, order
    wanted = backend.steer_add_rms_norm(x, residual, *rest)
    wide_x = torch.full((6, width + 3), 9.0, dtype=dtype, device=device)
    wide_r = torch.full((6, 2 * width + 5), 9.0, dtype=dtype, device=device)
    inner_x, inner_r = wide_x[:, 2 : 2 + width], wide_r[:, 1 : 1 + width]
    inner_x.copy_(x)
    inner_r.copy_(residual)
    assert_same(backend.steer_add_rms_norm(inner_x, inner_r, *rest), wanted, "strided rows")
    backend.steer_add_rms_norm_(inner_x, inner_r, *rest)
    assert_same((inner_r, inner_x), wanted, "strided rows in place")
    for wide, inner, start in ((wide_x, inner_x, 2), (wide_r, inner_r, 1)):
        outside = wide.clone()
        outside[:, start : start + width] = 9.0
        assert bool((outside == 9.0).all()), "written between the rows"
        assert inner.shape == (6, width)
    columns = x.t().contiguous().t()
    assert_same(backend.steer_add_rms_norm(columns, residual, *rest), wanted, "columns")
    cube = backend.steer_add_rms_norm(x.view(2, 3, width), residual.view(2, 3, width), *rest)
    assert cube[0].shape == cube[1].shape == (2, 3, width)
    assert_same([part.view(6, width) for part in cube], wanted, "three dimensions")
    across = residual.view(3, 2, width).transpose(0, 1).contiguous().transpose(0, 1)
    cube = backend.steer_add_rms_norm(x.view(3, 2, width), across, *rest)
    assert_same([part.reshape(6, width) for part in cube], wanted, "no single stride")
    one = steering._replace(row_slot=steering.row_slot[:1], row_gain=steering.row_gain[:1])
    alone = backend.steer_add_rms_norm(x[:1], residual[:1], weight, eps, one, order)
    flat = backend.steer_add_rms_norm(x[0], residual[0], weight, eps, one, order)
    assert_same([part[None] for part in flat], alone, "one dimension")


def nothing_to_do(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """N = 0, in two and in three dimensions, and an empty table."""
    x, residual, weight, eps, steering, order = _mixed(dtype, width, 2).arguments_on(device)
    empty = steering._replace(row_slot=steering.row_slot[:0], row_gain=steering.row_gain[:0])
    for shape in ((0, width), (2, 0, width)):
        none = x.new_empty(shape)
        stream, normed = backend.steer_add_rms_norm(none, none, weight, eps, empty, order)
        assert stream.shape == normed.shape == shape, "the shape of nothing"
        assert backend.steer(none, empty).shape == shape
        backend.steer_add_rms_norm_(none.clone(), none.clone(), weight, eps, empty, order)
    blank = Steering(
        torch.full_like(steering.row_slot, -1),
        steering.row_gain,
        steering.records[:1],
        steering.reads[:0],
        steering.bank[:1],
    )
    stream, _ = backend.steer_add_rms_norm(x, residual, weight, eps, blank, order)
    assert same_bits(stream, residual + x), "a table without programs"


def edits_show_at_once(backend: Any, dtype: torch.dtype, width: int, device: str = "cpu") -> None:
    """A table written to in place, at the same addresses, is the table that the next call reads."""
    x, residual, weight, eps, steering, order = _mixed(dtype, width, 9).arguments_on(device)
    backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)
    other = Steering(*(t.clone() for t in steering))
    first = backend.steer_add_rms_norm(x, residual, weight, eps, other, order)[0]
    changes: dict[str, Callable[[Tensor], Any]] = {
        "row_gain": lambda t: t.mul_(-0.5),
        "bank": lambda t: t.mul_(1.5),
        "records": lambda t: t[:, 1].copy_((t[:, 1] + 1) % 3),
        "reads": lambda t: t[:, :, 6].copy_((t[:, :, 6].view(torch.float32) * 0.5).view(t.dtype)),
        "row_slot": lambda t: t.copy_(t.flip(0)),
    }
    for name, change in changes.items():
        change(getattr(steering, name))
        fresh = Steering(*(t.clone() for t in steering))
        got = backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)
        wanted = backend.steer_add_rms_norm(x, residual, weight, eps, fresh, order)
        assert_same(got, wanted, f"after an edit of {name}")
        assert width == 1 or not torch.equal(got[0], first), f"an edit of {name} has no effect"
        first = got[0]


def other_slots_are_irrelevant(
    backend: Any, dtype: torch.dtype, width: int, device: str = "cpu"
) -> None:
    """NaN in every bank row, and rubbish in every record and program, that the call does not reach."""
    x, residual, weight, eps, steering, order = _mixed(dtype, width, 9).arguments_on(device)
    wanted = backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)
    slots = sorted(set(steering.row_slot.tolist()) - {-1})
    records, reads, bank = (t.clone() for t in steering[2:])
    reached: set[int] = set()
    for slot in range(len(records)):
        delta, _, program, count = records[slot].tolist()
        if slot in slots:
            reached |= {delta, *reads[program, :count, 1:3].flatten().tolist()}
            reads[program, count:] = 1
        else:
            records[slot] = torch.tensor([0, 2, 0, 16], dtype=torch.int32)
    unread = [row for row in range(len(bank)) if row not in reached]
    assert unread, "the case reaches every row"
    bank[unread] = torch.nan
    changed = Steering(steering.row_slot, steering.row_gain, records, reads, bank)
    got = backend.steer_add_rms_norm(x, residual, weight, eps, changed, order)
    assert_same(got, wanted, "with rubbish in other slots")


def rows_are_independent(
    backend: Any,
    dtype: torch.dtype,
    width: int,
    device: str = "cpu",
    sizes: Sequence[int] = SIZES,
) -> None:
    """A row's bits are the same in a batch of any size, at any place, beside any slots."""
    most = max(sizes)
    x, residual, weight, eps, steering, order = _mixed(dtype, width, most).arguments_on(device)
    whole = backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)

    def some(rows: Tensor) -> tuple[Tensor, Tensor]:
        part = steering._replace(
            row_slot=steering.row_slot[rows].contiguous(),
            row_gain=steering.row_gain[rows].contiguous(),
        )
        pair: tuple[Tensor, Tensor] = backend.steer_add_rms_norm(
            x[rows], residual[rows], weight, eps, part, order
        )
        return pair

    generator = torch.Generator().manual_seed(most)
    for size in sizes:
        rows = torch.randperm(most, generator=generator)[:size].to(device)
        assert_same(some(rows), [part[rows] for part in whole], f"{size} rows of {most}")
    one = torch.arange(0, most, max(1, most // 12), device=device)
    for row in one:
        assert_same(some(row[None]), [part[row][None] for part in whole], f"row {int(row)} alone")
    swapped = steering._replace(row_slot=steering.row_slot.flip(0).contiguous())
    kept = (swapped.row_slot == steering.row_slot).nonzero()[:, 0]
    other = backend.steer_add_rms_norm(x, residual, weight, eps, swapped, order)
    assert_same([p[kept] for p in other], [p[kept] for p in whole], "beside other slots")


# ``rows_are_independent`` is no law of the reference: torch's sums depend on the number of rows.
EXACT_LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        unsteered_rows_keep_their_bits,
        forms_agree,
        layout_is_irrelevant,
        nothing_to_do,
        edits_show_at_once,
        other_slots_are_irrelevant,
        rows_are_independent,
    )
}
