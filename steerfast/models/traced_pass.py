"""TracedPass: the forward whose graph is being traced, which will be run by any thread under any plan."""

from __future__ import annotations

import torch
from torch import Tensor

from steerfast.models.forward_pass import ForwardPass
from steerfast.routing import compiled
from steerfast.routing.inputs import Inputs
from steerfast.routing.route import Rows
from steerfast.table.table import Table


class TracedPass(ForwardPass):
    """The forward that is being traced; ``rows`` is None where none is. Its graph finds rows and gains as it runs, by ``key``."""

    rows: Rows | None  # type: ignore[assignment]

    def __init__(self, table: Table, key: int, anchor: Tensor) -> None:
        super().__init__(table, (0, 0), None)  # type: ignore[arg-type]
        self.key, self.anchor = key, anchor

    def begin(self, inputs: Inputs, measured: frozenset[int], fusing: bool) -> None:
        """Route it. It looks at every measured site, whatever is in use."""
        known = -1 if inputs.seen is None else inputs.seen
        seen = known if isinstance(known, Tensor) else torch.tensor(known)
        self.rows = Rows(*compiled.route(*inputs._replace(seen=seen), self.key))
        self.measured, self.fusing = measured, fusing
        self._handed = None

    def end(self) -> None:
        """Nothing of it stays behind."""
        self.rows = self._handed = None

    def apart(self, stream: Tensor, measured: frozenset[int]) -> ForwardPass:
        """The forward that is in progress when a layer runs that is compiled by itself."""
        here = TracedPass(self.table, self.key, self.anchor)
        here.rows, here.measured = Rows(*compiled.layer(stream, self.key)), measured
        return here

    @property
    def acts(self) -> bool:
        return True

    def may_steer(self, site: int) -> bool:
        """Who runs the graph may steer anywhere."""
        return True

    def measure(self, stream: Tensor, site: int) -> None:
        """As an op."""
        if site in self.measured:
            assert self.rows is not None
            gain = compiled.measure(stream, site, self.rows.gain, self.anchor, self.key)
            self.rows = self.rows._replace(gain=gain)
