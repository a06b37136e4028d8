"""Compiled forwards of an attached model. A graph is traced once and run by any thread under any plan: what it asks for as it
runs (``routing.compiled``) is answered here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerfast.models.forward_pass import ForwardPass
from steerfast.routing import compiled
from steerfast.routing.inputs import Inputs
from steerfast.routing.route import Rows
from steerfast.table.table import Table

if TYPE_CHECKING:
    from steerfast.models.attachment import Attachment


class TracedPass(ForwardPass):
    """The forward that is being traced; ``rows`` is None where none is. Its graph finds rows and gains as it runs, by ``key``."""

    rows: Rows | None  # type: ignore[assignment]

    def __init__(self, table: Table, key: int, anchor: Tensor) -> None:
        super().__init__(table, (0, 0), None)  # type: ignore[arg-type]
        self.key, self.anchor = key, anchor

    def begin(self, inputs: Inputs, measured: frozenset[int], fusing: bool) -> None:
        """Route it. It looks at every measured site, whatever is in use."""
        seen = inputs.seen if isinstance(inputs.seen, Tensor) else torch.tensor(inputs.seen)
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

    def measure(self, stream: Tensor, site: int) -> None:
        """As an op."""
        if site in self.measured:
            assert self.rows is not None
            gain = compiled.measure(stream, site, self.rows.gain, self.anchor, self.key)
            self.rows = self.rows._replace(gain=gain)


class CompiledForwards:
    """What the ops in a compiled forward's graph call, in the thread that runs it."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        table = attachment.table
        anchor = torch.zeros((), device=table.device)
        self.traced = TracedPass(table, compiled.key_of(self), anchor)

    def route(self, inputs: Inputs) -> tuple[Rows, bool]:
        """Route a forward that begins, and say whether it would have to read the prompt first."""
        forwards = self.attachment.forwards
        routing = forwards.route(self.attachment.in_use(), inputs)
        forwards.note(inputs.shape, routing, routing.judging)
        return routing.rows, routing.measure_first

    def layer(self, stream: Tensor) -> Rows:
        """The route of the forward in progress, of which a layer is compiled apart."""
        forwards, rows = self.attachment.forwards, stream.shape[0] * stream.shape[1]
        now = forwards.now
        if now is None or now.rows.slot.shape[0] != rows:
            now = forwards.alone(rows)
        return now.rows

    def measure(self, stream: Tensor, site: int) -> Tensor:
        """Let conditions read the stream; the gains of the forward, with what is decided now."""
        now = self.attachment.state.last
        assert now is not None
        now.measure(stream, site)
        return now.rows.gain
