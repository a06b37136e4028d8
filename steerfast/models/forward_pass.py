"""One forward of an attached model: the rows it is routed by, what its layers hand over, what its conditions read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steerfast.ops.records import Steering
from steerfast.routing.route import Rows
from steerfast.routing.verdicts import Verdicts
from steerfast.table.entry import UNSTEERED, Entry
from steerfast.table.table import Table

Served = Callable[[], tuple[Entry | None, ...]]


class ForwardPass:
    """State of one forward, and of no other.

    shape: (B, T) of its input. rows: its route. served: the requests it is made for. judging: what conditions measure by,
    where this forward reads prompts for them, at the sites of ``measured``. reads_first: it has rows that depend on what it
    will read. fusing: False where something wants to see
    every norm called.
    """

    def __init__(
        self,
        table: Table,
        shape: tuple[int, int],
        rows: Rows,
        served: Served = lambda: (None,),
        *,
        judging: Verdicts | None = None,
        measured: frozenset[int] = frozenset(),
        reads_first: bool = False,
        fusing: bool = True,
    ) -> None:
        self.table, self.shape, self.rows, self.served = table, shape, rows, served
        self.judging, self.measured = judging, measured
        self.reads_first, self.fusing = reads_first, fusing
        self.opens = False  # a forward of its own over new prompts, under plans with conditions
        self._handed: tuple[Tensor, int | None, nn.Module, Tensor] | None = None

    def steering(self, site: int) -> Steering:
        """The kernel's view of one site."""
        rows, table = self.rows, self.table
        return Steering(rows.slot, rows.gain, table.site_records[site], table.reads, table.bank)

    @property
    def acts(self) -> bool:
        """Something may be steered in it."""
        return any(entry is not None for entry in self.served())

    def may_steer(self, site: int) -> bool:
        """Whether a plan that this forward is made for acts at a site, on whatever tokens."""
        phases = [phase for entry in self.served() if entry is not None for phase in entry.phases]
        return any(site in phase.sites for phase in phases)

    # -- conditions ------------------------------------------------------------------------------------

    def measure(self, stream: Tensor, site: int) -> None:
        """Let conditions that are measured at this site read it; from here on gains are what was decided."""
        if self.judging is not None and site in self.measured:
            gain = self.judging.measure(stream, site, self.rows, self.table.bank)
            self.rows = self.rows._replace(gain=gain)

    @contextmanager
    def reading_only(self) -> Iterator[None]:
        """A run over the same rows that steers nothing and lets conditions read; then gains are known."""
        rows, judging = self.rows, self.judging
        assert judging is not None
        self.rows = rows._replace(slot=torch.full_like(rows.slot, UNSTEERED))
        try:
            yield
        finally:
            self.judging = None
            self.rows = rows._replace(gain=judging.gain(rows.base, rows.seat))

    # -- the hand-over of a normed stream to the module that would compute it -----------------------

    def offer(self, stream: Tensor, norm: nn.Module, normed: Tensor) -> None:
        """Keep ``norm(stream)`` for whoever asks with this very stream."""
        self._handed = (stream, _version(stream), norm, normed)

    def take(self, stream: Tensor, norm: nn.Module) -> Tensor | None:
        """``norm(stream)`` if it was offered for this tensor, unmodified since, and this norm."""
        handed, self._handed = self._handed, None
        if handed is None or handed[0] is not stream or handed[2] is not norm:
            return None
        return handed[3] if handed[1] == _version(stream) else None

    def end(self) -> None:
        """Hand over nothing more."""
        self._handed = None


def _version(tensor: Tensor) -> int | None:
    """The in-place counter where there is one: not while tracing, not for inference tensors."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version
