"""The forwards of an attached model: each is routed as it begins, and its layers find it in their thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.find import Decoder
from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.prompt_mark import check_mark
from steerfast.models.rebind import standing_in
from steerfast.models.scope import InLoop
from steerfast.models.thread_state import ThreadState
from steerfast.models.traced_pass import TracedPass
from steerfast.ops.implementations import implementation
from steerfast.ops.records import Steering
from steerfast.routing.capture import capturing
from steerfast.routing.compiled import key_of
from steerfast.routing.in_use import InUse
from steerfast.routing.inputs import Inputs
from steerfast.routing.per_thread import who_runs
from steerfast.routing.route import Rows
from steerfast.routing.routing import Routing


class Forwards:
    """Of one attached model, in all threads."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        anchor = torch.zeros((), device=attachment.table.device)
        self.traced = TracedPass(attachment.table, key_of(self), anchor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Of a copied model, by its own attachment; that leads back here, so this comes first."""
        return object.__new__, (Forwards,), self.attachment

    def __setstate__(self, attachment: Attachment) -> None:
        Forwards.__init__(self, attachment)

    @property
    def ops(self) -> ModuleType:
        """The functions of the backend."""
        return implementation(self.attachment.backend)

    @property
    def now(self) -> ForwardPass | None:
        """The one in progress in this thread."""
        return self.traced if torch.compiler.is_compiling() else self.attachment.here.now

    @contextmanager
    def running(
        self, inputs: Inputs, device: torch.device, fusing: bool, cache: Any = None
    ) -> Iterator[ForwardPass]:
        """A forward from its begin to its end, however it ends. device: where its layers run. cache: that it goes on with."""
        attachment, here = self.attachment, self.attachment.here
        outer, state = here.now, attachment.state
        bare = state.prepared is None and state.packed is None
        use, in_use = attachment.begin_reading()
        attachment.begin_running()
        try:
            if device != attachment.table.device:
                attachment.table.to(device)
            if outer is not None and in_use.conditional:
                raise SteerfastError(
                    "a forward was called from inside of another one of the same model, and plans with conditions are in use, "
                    "which would read both; call it before or after"
                )
            if bare and in_use.conditional and inputs.begun != 0:
                check_mark(cache, state.reading)
            routing = self.route(in_use, inputs)
            captured = capturing()
            if captured:
                attachment.table.shown_reads.note_capture()
            # A captured forward looks at every measured site, whatever is in use by now.
            judging = routing.judging if routing.measuring or captured else None
            here.now = attachment.note(inputs.shape, routing, judging, fusing)
            here.now.opens = bare and in_use.conditional and inputs.begun == 0
            yield here.now
        finally:
            if here.now is not None and here.now is not outer:
                here.now.end()
            here.now = outer
            if bare:
                state.routing.restore()
            attachment.end_running()
            if use is not None:
                use.lease.end_reading()

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
        routing = self.attachment.assigned(in_use)
        self._route(routing, in_use, inputs, state)
        # What generate reads of its prompts is what it began with; nobody may look where a graph is captured.
        if routing.measuring and state.generation is None and inputs.begun is not None:
            routing.judging.read(inputs.like, routing.rows)
        return routing

    def _route(self, routing: Routing, in_use: InUse, inputs: Inputs, state: ThreadState) -> None:
        prepared, state.prepared = state.prepared, None
        if prepared is None:
            self._check_loop()
            routing.rows = routing.bare(inputs, in_generate=state.generation is not None)
            return
        if prepared.rows != inputs.rows:
            batch, length = inputs.shape
            raise SteerfastError(
                f"generate prepared {prepared.rows} rows but the model was called with {batch} x {length}; "
                "this generation strategy is not supported"
            )
        if prepared.in_use is not in_use:  # changed since, by another thread
            prepared.again()
            state.prepared = None

    def _check_loop(self) -> None:
        """SteerfastError in a thread that a decoding loop of another has started: what that has prepared is not for it."""
        for loop in scope.entered(InLoop, self.attachment):
            if loop.owner != who_runs():
                raise SteerfastError(
                    "this forward runs in another thread or task than its handle.generating(...) block, so that what was "
                    "prepared for it is not at hand; call loop.step(...) where the model is called, or open the block there"
                )

    # -- what layers ask for ---------------------------------------------------------------------------

    def of_layer(self, stream: Tensor) -> tuple[ForwardPass, bool]:
        """The forward that runs a layer, and whether the layer may hand over what the next one starts with: not to what is
        compiled apart from it."""
        rows, traced = stream.shape[0] * stream.shape[1], self.traced
        if torch.compiler.is_compiling():
            if traced.rows is None:
                return traced.apart(stream, self.attachment.measured), False
            return traced, True
        now = self.attachment.here.now
        if now is None and traced.rows is not None:
            now = traced  # whose graph has a break here
        if now is None or now.rows.slot.shape[0] != rows:
            return self.alone(rows), True
        return now, True

    def alone(self, rows: int) -> ForwardPass:
        """For a layer called by itself, outside of its model's forward."""
        if capturing():
            raise SteerfastError(
                f"a graph is captured of a layer by itself, with {rows} rows, and which rows its replays would steer is not known; "
                "capture the forward of the model"
            )
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

    # -- what the graph of a compiled forward asks for, in the thread that runs it (``routing.compiled``) -----

    def compiled_route(self, inputs: Inputs) -> tuple[Rows, bool]:
        """Route a forward that begins, and say whether it would have to read the prompt first."""
        if capturing():
            self.attachment.table.shown_reads.note_capture()
        routing = self.route(self.attachment.read(), inputs)
        self.attachment.note(inputs.shape, routing, routing.judging)
        return routing.rows, routing.measure_first

    def compiled_layer(self, stream: Tensor) -> Rows:
        """The route of the forward in progress, of which a layer is compiled apart."""
        now, rows = self.attachment.here.now, stream.shape[0] * stream.shape[1]
        if now is None or now.rows.slot.shape[0] != rows:
            now = self.alone(rows)
        return now.rows

    def compiled_measure(self, stream: Tensor, site: int) -> Tensor:
        """Let conditions read the stream; the gains of the forward, with what is decided now."""
        now = self.attachment.state.last
        assert now is not None
        now.measure(stream, site)
        return now.rows.gain


def attachment_of(decoder: Decoder) -> Attachment | None:
    """What an attached decoder is attached by; None where it is not."""
    ours = standing_in(decoder.module)
    return None if ours is None else ours.forwards.attachment  # type: ignore[no-any-return]
