"""The forwards of an attached model: each is routed as it begins, and its layers find it in their thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.forward_pass import ForwardPass
from steerfast.ops.records import Steering
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.inputs import Inputs
from steerfast.routing.per_thread import who_runs
from steerfast.routing.routing import Routing
from steerfast.routing.verdicts import Verdicts

if TYPE_CHECKING:
    from steerfast.models.attachment import Attachment


class _Here(threading.local):
    """now: the forward that runs in this thread."""

    now: ForwardPass | None = None


class Forwards:
    """Of one attached model, in all threads."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self._here = _Here()

    @property
    def now(self) -> ForwardPass | None:
        """The one in progress in this thread."""
        return self._here.now

    @contextmanager
    def running(self, inputs: Inputs, device: torch.device, fusing: bool) -> Iterator[ForwardPass]:
        """A forward from its begin to its end, however it ends. device: where its layers run."""
        attachment, outer = self.attachment, self._here.now
        use = attachment.in_force()
        in_use = NOTHING if use is None else use.begin_reading()
        attachment.begin_running()
        try:
            if device != attachment.table.device:
                attachment.table.to(device)
            if outer is not None and in_use.conditional:
                raise SteerfastError(
                    "a forward was called from inside of another one of the same model, and plans with conditions are in use, "
                    "which would read both; call it before or after"
                )
            now = self._here.now = self._routed(in_use, inputs, fusing)
            yield now
        finally:
            self._here.now = outer
            attachment.end_running()
            if use is not None:
                use.lease.end_reading()

    def _routed(self, in_use: InUse, inputs: Inputs, fusing: bool) -> ForwardPass:
        routing = self.route(in_use, inputs)
        judging = routing.judging if routing.measuring else None
        return self.note(inputs.shape, routing, judging, fusing)

    def note(
        self,
        shape: tuple[int, int],
        routing: Routing,
        judging: Verdicts | None,
        fusing: bool = True,
    ) -> ForwardPass:
        """A forward by what has been routed for it; the last one, for the report."""
        attachment = self.attachment
        now = ForwardPass(
            attachment.table,
            shape,
            routing.rows,
            routing.served,
            judging=judging,
            measured=attachment.measured,
            reads_first=routing.measure_first,
            fusing=fusing,
        )
        attachment.last = attachment.state.last = now
        return now

    def route(self, in_use: InUse, inputs: Inputs) -> Routing:
        """Route a forward that begins in this thread; where its rows are.

        Takes what ``generate`` or a serving engine has prepared, or else makes the route of a bare forward: positions from
        a 2-D mask or the cache's length; all rows are prompt unless ``use(..., prompt_lengths=)`` said otherwise.
        """
        state = self.attachment.state
        if state.packed is not None:
            if len(state.packed.rows.slot) != inputs.rows:
                state.packed.rows = state.packed.buffers.at(inputs.rows)
            return state.packed
        routing = state.routing
        if routing.device != self.attachment.table.device:
            routing.to(self.attachment.table.device)
        if routing.in_use is not in_use:
            routing.assign(in_use)
        prepared, state.prepared = state.prepared, None
        if prepared is None:
            self._check_loop()
            routing.rows = routing.bare(inputs, in_generate=state.generation is not None)
            return routing
        if prepared.rows != inputs.rows:
            batch, length = inputs.shape
            raise SteerfastError(
                f"generate prepared {prepared.rows} rows but the model was called with {batch} x {length}; "
                "this generation strategy is not supported"
            )
        if prepared.in_use is not in_use:  # changed since, by another thread
            prepared.again()
            state.prepared = None
        return routing

    def _check_loop(self) -> None:
        """SteerfastError in a thread that a decoding loop of another has started: what that has prepared is not for it."""
        from steerfast.models.generation import Loop

        for loop in scope.entered(Loop, self.attachment):
            if loop.owner != who_runs():
                raise SteerfastError(
                    "this forward runs in another thread or task than its handle.generating(...) block, so that what was "
                    "prepared for it is not at hand; call loop.step(...) where the model is called, or open the block there"
                )

    # -- what layers ask for ---------------------------------------------------------------------------

    def of_layer(self, stream: Tensor) -> tuple[ForwardPass, bool]:
        """The forward that runs a layer, and whether the layer may hand over what the next one starts with: not to what is
        compiled apart from it."""
        rows, traced = stream.shape[0] * stream.shape[1], self.attachment.compiled.traced
        if torch.compiler.is_compiling():
            if traced.rows is None:
                return traced.apart(stream, self.attachment.measured), False
            return traced, True
        now = self._here.now
        if now is None and traced.rows is not None:
            now = traced  # whose graph has a break here
        if now is None or now.rows.slot.shape[0] != rows:
            return self.alone(rows), True
        return now, True

    def alone(self, rows: int) -> ForwardPass:
        """For a layer called by itself, outside of its model's forward."""
        if self.attachment.in_use().active:
            raise SteerfastError(
                f"a layer was called by itself with {rows} rows, which no forward of the model has "
                "routed; call the model, or end use() first"
            )
        attachment = self.attachment
        return ForwardPass(attachment.table, (1, rows), attachment.routing.buffers.idle(rows))

    def frozen(self, now: ForwardPass, site: int) -> Steering:
        """The steering of a forward by value, for a backward pass that runs a layer again after plans have changed."""
        if now.judging is not None:
            raise SteerfastError(
                "a plan with a condition cannot be used with gradient checkpointing: the prompt would be "
                "measured again in the backward pass; switch checkpointing off"
            )
        slot, gain, records, _, _ = now.steering(site)
        frozen = self.attachment.table.frozen()
        return Steering(slot.clone(), gain.clone(), records.clone(), *frozen)
