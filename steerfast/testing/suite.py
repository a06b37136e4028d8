"""``cases``: which families, dtypes, widths, streams and routes are put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from steerfast.ops.forms import NormOrder
from steerfast.ops.records import Steering
from steerfast.testing.bounds import analyse
from steerfast.testing.case import Case
from steerfast.testing.families import FAMILIES, axes, each, mixed, thresholds
from steerfast.testing.operators import Maker
from steerfast.testing.streams import STREAMS, Source
from steerfast.testing.table import Table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 32, 63, 100, 576, 1025)
ROWS = (1, 5, 64)
MIXES = ("zipf", "all distinct", "all the same", "some unsteered")
GAINS = (1.0, 1.0, 1.0, 0.0, 0.37, -1.5)
QUICK_WIDTHS = (7, 100, 160)
QUICK_ROWS = (9,)


class _Setting(NamedTuple):
    """A table, how much larger its directions' outlier channels are, streams, and perhaps one mix of slots."""

    fill: Callable[[Maker], None]
    outlier: float = 0.0
    stream: str = "ordinary"
    mix: str | None = None


_SETTINGS = {
    **{name: _Setting(fill) for name, fill in FAMILIES.items()},
    "thresholds": _Setting(thresholds, mix="all distinct"),
    "outlier-directions": _Setting(mixed, outlier=80.0),
    "denormal": _Setting(mixed, stream="denormal"),
    "extreme-norms": _Setting(mixed, stream="extreme"),
    "zero-rows": _Setting(each, stream="zero", mix="all distinct"),
    "slerp-axis": _Setting(axes, stream="axis"),
}


def cases(
    dtypes: Sequence[torch.dtype] = DTYPES,
    widths: Sequence[int] = WIDTHS,
    rows: Sequence[int] = ROWS,
    *,
    seed: int = 0,
    quick: bool = False,
) -> Iterator[Case]:
    """Conformance cases, a few hundred by default; the same for the same arguments, and built lazily.

    First one case with a bit of everything for every dtype, width D and number of rows N. Then, for every
    dtype, each family at three of the widths; norm orders, weights of T and of float32, and mixes of
    slots in turn. ``quick``: each family once, narrow, with few rows, and not in bfloat16, which
    Triton's interpreter does not round: for backends that take milliseconds a row.
    Cases are cached and shared: do not write to their tensors. AssertionError where no rows can be
    found that stay clear of every threshold by ``MARGIN``.
    """
    for make in makers(dtypes, widths, rows, seed=seed, quick=quick):
        yield make()


def makers(
    dtypes: Sequence[torch.dtype] = DTYPES,
    widths: Sequence[int] = WIDTHS,
    rows: Sequence[int] = ROWS,
    *,
    seed: int = 0,
    quick: bool = False,
) -> Iterator[Callable[[], Case]]:
    """``cases``, each made only when it is called for: to count them, or to share them out."""
    if quick:
        dtypes = [d for d in dtypes if d is not torch.bfloat16] or dtypes
        widths = QUICK_WIDTHS if widths is WIDTHS else widths
        rows = QUICK_ROWS if rows is ROWS else rows
    else:
        for dtype in dtypes:
            for width in widths:
                for count in rows:
                    yield partial(_case, "mixed", dtype, width, count, seed, 0)
    most = sorted(rows)[-2:]  # a family has several slots, so a single row shows little of it
    for place, name in enumerate(_SETTINGS):
        for turn in range(1 if quick else min(3, len(widths))):
            for at, dtype in enumerate(dtypes[place % len(dtypes) :][:1] if quick else dtypes):
                width = widths[(place + turn * 2) % len(widths)]
                count = most[(place + turn + at) % len(most)]
                yield partial(_case, name, dtype, width, count, seed, 1 + place + turn + at)


@lru_cache(maxsize=1024)
def _case(name: str, dtype: torch.dtype, width: int, count: int, seed: int, turn: int) -> Case:
    order: NormOrder = "fp32" if turn // 2 % 2 else "hf"
    wide_weight = turn % 3 == 2
    label = f"{name}-{str(dtype).removeprefix('torch.')}-N{count}-D{width}-{order}-{turn}"
    generator = torch.Generator().manual_seed(seed + zlib.crc32(label.encode()))
    source = Source(generator, width, dtype)
    setting = _SETTINGS[name]
    streams, table = STREAMS[setting.stream](source, count), Table(width)
    setting.fill(Maker(source, table, setting.outlier, streams[1] + streams[0]))
    slots = _slots(setting.mix or MIXES[turn % len(MIXES)], len(table.slots), count, generator)
    gains = torch.tensor(GAINS)[torch.randint(len(GAINS), (count,), generator=generator)]
    if setting.mix is None:
        slots[0] = 1 + turn % len(table.slots)  # the smallest batch steers too
    gains[0] = 1.0
    x, residual, steering = _settled(
        label, source, STREAMS[setting.stream], *streams, table.steering(slots, gains)
    )
    weight = 1.0 + 0.1 * source.normal(width)
    weight = weight if wide_weight else weight.to(dtype)
    eps = 1e-5 if turn % 2 else 1e-6
    return Case(label, x, residual, weight, eps, steering, order, name)


def _slots(mix: str, slots: int, count: int, generator: torch.Generator) -> Tensor:
    """[N]: slots 1..slots, and -1."""
    if mix == "all the same":
        return torch.full((count,), 1 + int(torch.randint(slots, (), generator=generator)))
    if mix == "all distinct":
        return 1 + torch.arange(count) % slots
    if mix == "some unsteered":
        chosen = torch.randint(slots + slots // 2 + 1, (count,), generator=generator)
        return torch.where(chosen < slots, 1 + chosen, -1)
    share = 1.0 / torch.arange(1, slots + 2)
    chosen = torch.multinomial(share, count, replacement=True, generator=generator)
    ranks = torch.randperm(slots + 1, generator=generator)[chosen]
    return torch.where(ranks < slots, 1 + ranks, -1)


def _settled(
    label: str,
    source: Source,
    stream: Callable[[Source, int], tuple[Tensor, Tensor]],
    x: Tensor,
    residual: Tensor,
    steering: Steering,
) -> tuple[Tensor, Tensor, Steering]:
    """Streams whose rows all stay clear of thresholds (``bounds.MARGIN``): those that do not are drawn again.

    On a line (D = 1) some slots leave no clear row at all; such rows are left unsteered.
    """
    count = len(steering.row_slot)
    limit = torch.finfo(source.dtype).max / 4
    for _ in range(50):
        bounds = analyse(residual + x, steering)
        unclear = ~bounds.clear | (bounds.y.abs() > limit).any(-1)
        if not unclear.any():
            return x, residual, steering
        again = stream(source, count)
        x = torch.where(unclear[:, None], again[0], x)
        residual = torch.where(unclear[:, None], again[1], residual)
    assert source.width == 1, f"{label}: rows {unclear.nonzero()[:, 0].tolist()} stay at thresholds"
    return x, residual, steering._replace(row_slot=torch.where(unclear, -1, steering.row_slot))
