"""What the laws try operators on: a few rows in one slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerfast.ops.records import Read
from steerfast.testing.case import Case
from steerfast.testing.operators import Maker
from steerfast.testing.streams import Source
from steerfast.testing.table import Table

ROWS = 6


class Trial:
    """Some rows, and a table to fill for them. Streams are ordinary ones, outlier channels included."""

    def __init__(self, dtype: torch.dtype, width: int, device: str, rows: int = ROWS) -> None:
        self.source = Source(torch.Generator().manual_seed(width), width, dtype)
        self.device = device
        x, residual = self.source.stream(rows)
        self.h = residual + x
        self.table = Table(width)
        self.maker = Maker(self.source, self.table, 0.0, self.h)

    def case(
        self,
        reads: Sequence[Read],
        *,
        h: Tensor | None = None,
        finish: str = "none",
        delta: Tensor | None = None,
    ) -> Case:
        """All rows in one slot, with gain 1."""
        h = self.h if h is None else h
        slot = self.table.slot(delta, reads, finish)
        steering = self.table.steering(torch.full((len(h),), slot), torch.ones(len(h)))
        weight = torch.ones(h.shape[1], dtype=h.dtype)
        return Case(f"law-{h.dtype}-D{h.shape[1]}", torch.zeros_like(h), h, weight, 1e-5, steering)

    def steered(self, backend: Any, case: Case) -> Tensor:
        steering = type(case.steering)(*(part.to(self.device) for part in case.steering))
        result: Tensor = backend.steer(case.h.to(self.device), steering)
        return result.cpu()


def assert_near(got: Tensor, wanted: Tensor, bound: Tensor, what: str) -> None:
    error = (got.double() - wanted.double()).abs()
    worst = float((error / bound.clamp(min=1e-300)).max())
    assert (error <= bound).all(), f"{what}: {worst:.3g} times the bound"
