"""Attachment: what the patched modules of one model share, and where each of them finds what belongs to its own thread.

The table of plans is for all. What belongs to one forward is in ``forward_pass``; routes and generations are in
``thread_state``; which plans are in force is a matter of where the caller stands (``scope``).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.forward_pass import ForwardPass, TracedPass
from steerfast.models.rebind import Rebindings
from steerfast.models.thread_state import Prepared, ThreadState
from steerfast.ops.implementations import implementation
from steerfast.ops.records import Steering
from steerfast.routing.compiled import key_of
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.per_thread import PerThread, who_runs
from steerfast.routing.route import Rows
from steerfast.routing.routing import Routing
from steerfast.table.table import Table

if TYPE_CHECKING:
    from steerfast.models.generation import Generation
    from steerfast.models.use import Use


class _Here(threading.local):
    """now: the forward that runs in this thread."""

    now: ForwardPass | None = None


class Attachment:
    """table: the plans in the model's fixed tensors. backend: whose ops run. measured: sites where conditions read; compiled
    code reads at all of them. rebindings: what was replaced on the model's modules."""

    def __init__(
        self, table: Table, backend: str, model_name: str, measured: frozenset[int] = frozenset()
    ) -> None:
        self.table, self.backend, self.measured = table, backend, measured
        self.model_name = model_name
        self.rebindings = Rebindings()
        self.is_attached = True
        self.uses: set[Use] = set()  # open ones, of all threads
        self.last: ForwardPass | None = None  # whoever ran it
        self.traced = TracedPass(table, key_of(self), torch.zeros((), device=table.device))
        self._states = PerThread(lambda: ThreadState(table))
        self._here = _Here()
        self._running: Counter[int] = Counter()  # forwards and generations in progress, by thread

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or unpickled model is attached and idle. Under ``use`` there is none: nobody could end it there."""
        for use in self.uses:
            use.in_use.check_idle()
        settings = self.table, self.backend, self.model_name, self.measured
        return Attachment, settings, {"rebindings": self.rebindings}

    @property
    def ops(self) -> ModuleType:
        """The functions of the backend."""
        return implementation(self.backend)

    @property
    def state(self) -> ThreadState:
        """Of this thread, or task."""
        return self._states.mine()

    @property
    def now(self) -> ForwardPass | None:
        """The forward in progress in this thread."""
        return self.traced if torch.compiler.is_compiling() else self._here.now

    # -- what is in force ------------------------------------------------------------------------------

    def in_force(self) -> Use | None:
        """The innermost ``use`` here. SteerfastError where it was inherited, and is over: then nobody can say what was meant."""
        from steerfast.models.use import Use

        generation = self.state.generation
        for use in scope.entered(Use, self):
            if use.is_open or (generation is not None and generation.use is use):
                return use
            if use.owner != who_runs():
                raise SteerfastError(
                    "the use() in which this thread or task was started has ended before it ran the model; wait for it inside "
                    "the block, or call handle.use(...) in it, with None for no steering"
                )
        return None

    def in_use(self) -> InUse:
        """What forwards here are steered by."""
        use = self.in_force()
        return NOTHING if use is None else use.in_use

    def follow(self) -> Routing:
        """The routing of this thread, made for what is in use here."""
        routing, in_use = self.state.routing, self.in_use()
        if routing.in_use is not in_use:
            routing.assign(in_use)
        return routing

    def note_sites(self, sites: AbstractSet[int]) -> None:
        """Conditions will read there."""
        self.measured = self.measured | sites

    def begin_use(self, use: Use) -> None:
        with self.table.lock:
            self.uses.add(use)
        self.note_sites(use.in_use.measured)

    def end_use(self, use: Use) -> bool:
        """Whether it was open."""
        with self.table.lock:
            was_open, use.is_open = use.is_open, False
            self.uses.discard(use)
        return was_open

    # -- who is running --------------------------------------------------------------------------------

    def begin_running(self) -> None:
        """A forward or a generation begins in this thread."""
        with self.table.lock:
            self._running[threading.get_ident()] += 1

    def end_running(self) -> None:
        with self.table.lock:
            self._running[threading.get_ident()] -= 1
            self._running += Counter()  # keeps what is above zero

    def check_quiet(self, what: str) -> None:
        """SteerfastError while another thread runs the model."""
        with self.table.lock:
            others = set(self._running) - {threading.get_ident()}
        if others:
            raise SteerfastError(
                f"cannot {what} while {len(others)} other thread(s) run the model, which would go on half steered; wait for them"
            )

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """While a ``generate`` runs in this thread: the plans that it began under are kept for it."""
        if self.now is not None:
            raise SteerfastError(
                "generate was called from inside a forward of the same model, whose rows it would overwrite; call it before or "
                "after"
            )
        state = self.state
        outer, state.generation = state.generation, generation
        if generation.use is not None:
            generation.use.lease.hold()
        self.begin_running()
        try:
            yield
        finally:
            self.end_running()
            state.generation, state.prepared = outer, None
            if generation.use is not None:
                generation.use.lease.give_back()

    def prepare(
        self, generation: Generation, batch: int, length: int, mask: Tensor | None, seen: int
    ) -> None:
        """Route the forward that comes next in this thread, into fixed buffers: ``length`` columns of a generation after
        ``seen``."""
        state = self.state
        routing = self.follow()
        routing.in_use.check_batch(batch, exact=False)
        generation.route(routing, batch, length, mask, seen)
        again = partial(self.prepare, generation, batch, length, mask, seen)
        state.prepared = Prepared(batch * length, routing.in_use, again)

    def note_rows(self, batch: int, length: int) -> None:
        """For the report, where a captured graph may be replayed, which says nothing."""
        routing = self.state.routing
        self.last = self.state.last = ForwardPass(
            self.table, (batch, length), routing.rows, routing.served
        )

    # -- a forward -------------------------------------------------------------------------------------

    def begin(
        self,
        like: Tensor,
        device: torch.device,
        tokens: Tensor | None,
        mask: Any,
        position_ids: Tensor | None,
        cache: Any,
        fusing: bool,
    ) -> tuple[ForwardPass, Use | None, ForwardPass | None]:
        """The forward that begins, the use that it reads by, and the forward that it is inside of; all for ``end``.

        like: its input [B, T, ...]. device: where its layers run. Uses the route that ``generate`` or a serving engine has
        prepared, or else makes one of a bare forward: positions from a 2-D mask or the cache's length; all rows are prompt
        unless ``use(..., prompt_lengths=)`` said otherwise.
        """
        outer, use = self._here.now, self.in_force()
        in_use = NOTHING if use is None else use.begin_reading()
        self.begin_running()
        try:
            if device != self.table.device:
                self.table.to(device)
            seen = 0 if cache is None else cache.get_seq_length()
            flat, kind = flat_mask(mask)
            ids = position_ids if position_ids is not None and position_ids.ndim == 2 else None
            rows, routing = self._rows(in_use, like, tokens, flat, ids, seen, kind)
            if outer is not None and in_use.conditional:
                raise SteerfastError(
                    "a forward was called from inside of another one of the same model, and plans with conditions are in use, "
                    "which would read both; call it before or after"
                )
        except BaseException:
            self._finish(use)
            raise
        self._here.now = ForwardPass(
            self.table,
            (int(like.shape[0]), int(like.shape[1])),
            rows,
            routing.served,
            judging=routing.judging if routing.measuring else None,
            measured=self.measured,
            reads_first=routing.measure_first,
            fusing=fusing,
        )
        self.last = self.state.last = self._here.now
        return self._here.now, use, outer

    def end(self, use: Use | None, outer: ForwardPass | None) -> None:
        """A forward has ended, however."""
        self._here.now = outer
        self._finish(use)

    def _finish(self, use: Use | None) -> None:
        self.end_running()
        if use is not None:
            use.lease.end_reading()

    def _rows(
        self,
        in_use: InUse,
        like: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        seen: int | Tensor,
        mask_kind: str,
    ) -> tuple[Rows, Routing]:
        """The route of a forward, and whose it is."""
        state, count = self.state, int(like.shape[0] * like.shape[1])
        if state.packed is not None:
            packed = state.packed
            if len(packed.rows.slot) != count:
                packed.rows = packed.buffers.at(count)
            return packed.rows, packed
        routing = state.routing
        if routing.device != self.table.device:
            routing.to(self.table.device)
        if routing.in_use is not in_use:
            routing.assign(in_use)
        prepared, state.prepared = state.prepared, None
        if prepared is None:
            self._check_loop()
            inside = state.generation is not None
            return routing.bare(like, tokens, mask, position_ids, seen, mask_kind, inside), routing
        if prepared.rows != count:
            raise SteerfastError(
                f"generate prepared {prepared.rows} rows but the model was called with {like.shape[0]} x {like.shape[1]}; "
                "this generation strategy is not supported"
            )
        if prepared.in_use is not in_use:  # changed since, by another thread
            prepared.again()
            state.prepared = None
        return routing.rows, routing

    def _check_loop(self) -> None:
        """SteerfastError in a thread that a decoding loop of another has started: what that has prepared is not for it."""
        from steerfast.models.generation import Loop

        for loop in scope.entered(Loop, self):
            if loop.owner != who_runs():
                raise SteerfastError(
                    "this forward runs in another thread or task than its handle.generating(...) block, so that what was "
                    "prepared for it is not at hand; call loop.step(...) where the model is called, or open the block there"
                )

    def alone(self, rows: int) -> ForwardPass:
        """For a layer called by itself, outside of its model's forward."""
        if self.in_use().active:
            raise SteerfastError(
                f"a layer was called by itself with {rows} rows, which no forward of the model has "
                "routed; call the model, or end use() first"
            )
        return ForwardPass(self.table, (1, rows), self.state.routing.buffers.idle(rows))

    def frozen(self, now: ForwardPass, site: int) -> Steering:
        """The steering of a forward by value, for a backward pass that runs a layer again after plans have changed."""
        if now.judging is not None:
            raise SteerfastError(
                "a plan with a condition cannot be used with gradient checkpointing: the prompt would be "
                "measured again in the backward pass; switch checkpointing off"
            )
        slot, gain, records, _, _ = now.steering(site)
        return Steering(slot.clone(), gain.clone(), records.clone(), *self.table.frozen())

    def forward_of(self, stream: Tensor) -> tuple[ForwardPass, bool]:
        """The forward that runs a layer, and whether the layer may hand over what the next one starts with; it may not to
        what is compiled apart from it, nor where it was called by itself."""
        now, rows = self.now, stream.shape[0] * stream.shape[1]
        if now is self.traced and now.rows is None:
            return self.traced.apart(stream, self.measured), False
        if now is None and self.traced.rows is not None:
            now = self.traced  # whose graph has a break here
        if now is None or now.rows.slot.shape[0] != rows:
            return self.alone(rows), True
        return now, True

    # -- compiled forwards -----------------------------------------------------------------------------

    def trace(
        self,
        like: Tensor,
        device: torch.device,
        tokens: Tensor | None,
        mask: Any,
        position_ids: Tensor | None,
        cache: Any,
        fusing: bool,
    ) -> None:
        """``begin``, of a forward that is being traced."""
        flat, kind = flat_mask(mask)
        ids = position_ids if position_ids is not None and position_ids.ndim == 2 else None
        seen = 0 if cache is None else cache.get_seq_length()
        begun = seen if isinstance(seen, Tensor) else torch.tensor(seen)
        inputs = (like, tokens, flat, ids, begun, kind)
        self.traced.begin(*inputs, measured=self.measured, fusing=fusing)

    def compiled_rows(
        self,
        like: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        seen: int | Tensor,
        mask_kind: str,
    ) -> tuple[Rows, bool]:
        """The route of a compiled forward that begins in this thread, and whether it would have to read the prompt first."""
        rows, routing = self._rows(
            self.in_use(), like, tokens, mask, position_ids, seen, mask_kind
        )
        shape = int(like.shape[0]), int(like.shape[1])
        self.last = self.state.last = ForwardPass(
            self.table,
            shape,
            rows,
            routing.served,
            judging=routing.judging,
            measured=self.measured,
        )
        return rows, routing.measure_first

    def compiled_layer(self, stream: Tensor) -> Rows:
        """The rows of the forward in this thread, of which a layer is compiled apart."""
        now, rows = self._here.now, stream.shape[0] * stream.shape[1]
        if now is None or now.rows.slot.shape[0] != rows:
            now = self.alone(rows)
        return now.rows

    def compiled_measure(self, stream: Tensor, site: int) -> Tensor:
        """Let conditions read the stream of the compiled forward in this thread; returns its gains."""
        now = self.state.last
        assert now is not None
        now.measure(stream, site)
        return now.rows.gain


def attachment_of(decoder: nn.Module) -> Attachment | None:
    """What an attached decoder is attached by; None where it is not."""
    for place in ("forward", "_old_forward"):  # where accelerate has put its own around ours
        ours = getattr(decoder.__dict__.get(place), "__self__", None)
        if isinstance(getattr(ours, "shared", None), Attachment):
            return ours.shared  # type: ignore[no-any-return,union-attr]
    return None


def flat_mask(mask: Any) -> tuple[Tensor | None, str]:
    """(the mask, if it is 2-D; else what it is, for a message)."""
    if mask is None:
        return None, ""
    if isinstance(mask, Tensor):
        return (mask, "") if mask.ndim == 2 else (None, f"{mask.ndim}-D")
    return None, "custom"
