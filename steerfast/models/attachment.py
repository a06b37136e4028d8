"""Attachment: what everything of one attached model shares, and what each thread that runs it has for its own.

The table of plans is for all. Routes and generations are a thread's (``thread_state``); which plans are in force is a matter
of where the caller stands (``scope``).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor

from steerfast.decoders.survey import Survey
from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.generation import Generation
from steerfast.models.in_force import PlansInForce
from steerfast.models.rebind import Rebindings
from steerfast.models.thread_state import Prepared, ThreadState
from steerfast.routing.capture import check_written_before
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.per_thread import PerThread, who_runs
from steerfast.routing.routing import Routing
from steerfast.routing.verdicts import Verdicts
from steerfast.table.table import Table


class Here(threading.local):
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
        self.survey = Survey((), None)  # how the layers were patched
        self.rebindings = Rebindings()
        self.is_attached = True
        self.uses: weakref.WeakSet[PlansInForce] = weakref.WeakSet()  # open ones, of all threads
        self.engines: weakref.WeakSet[Any] = weakref.WeakSet()  # managers of continuous batching
        self.last: ForwardPass | None = None  # whoever ran it
        self.here = Here()
        self._states = PerThread(lambda: ThreadState(table))
        self._running: dict[int, int] = {}  # forwards and generations in progress, by thread

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or unpickled model is attached and idle. Under ``use`` there is none: nobody could end it there."""
        for use in self.uses:
            use.in_use.check_idle()
        settings = self.table, self.backend, self.model_name, self.measured
        return Attachment, settings, {"rebindings": self.rebindings, "survey": self.survey}

    @property
    def state(self) -> ThreadState:
        """Of this thread, or task."""
        return self._states.mine()

    @property
    def routing(self) -> Routing:
        """Of this thread, or task."""
        return self.state.routing

    # -- what is in force ------------------------------------------------------------------------------

    def in_force(self) -> PlansInForce | None:
        """The innermost ``use`` here. SteerfastError where it was inherited, and is over: then nobody can say what was meant."""
        generation = self.state.generation
        for use in scope.entered(PlansInForce, self):
            if use.is_open or (generation is not None and generation.use is use):
                return use
            if use.owner != who_runs():
                raise SteerfastError(
                    "the use() that was in force where this thread or task was started has ended, and it runs the model "
                    "still; wait for it inside the block, or call handle.use(...) in it, with None for no steering"
                )
        return None

    def in_use(self) -> InUse:
        """What forwards here are steered by."""
        use = self.in_force()
        return NOTHING if use is None else use.in_use

    def begin_reading(self) -> tuple[PlansInForce | None, InUse]:
        """What the forward that begins here is steered by, kept as it is until ``lease.end_reading``."""
        prepared = self.state.prepared
        if prepared is not None:  # a generation keeps what it began under
            in_use = NOTHING if prepared.use is None else prepared.use.begin_reading()
            assert in_use is not None
            return prepared.use, in_use
        while (use := self.in_force()) is not None:
            in_use = use.begin_reading()
            if in_use is not None:
                return use, in_use
        return None, NOTHING

    def read(self) -> InUse:
        """The same of a compiled forward, of which nobody learns when it ends."""
        prepared = self.state.prepared
        use = self.in_force() if prepared is None else prepared.use
        return NOTHING if use is None else use.in_use

    def follow(self) -> Routing:
        """The routing of this thread, made for what is in use here."""
        return self.assigned(self.in_use())

    def assigned(self, in_use: InUse) -> Routing:
        """The routing of this thread, made for this, where the table is."""
        routing = self.routing
        if routing.device != self.table.device:
            routing.to(self.table.device)
        if routing.in_use is not in_use:
            routing.assign(in_use)
        return routing

    def hold(self, generation: Generation) -> None:
        """Keep what is in force here for a generation that begins; ``let_go`` when it has ended."""
        while (use := self.in_force()) is not None and not use.lease.hold():
            pass  # it has ended in between; what is in force now?
        generation.use = use

    def let_go(self, generation: Generation) -> None:
        if generation.use is not None:
            generation.use.lease.give_back()

    def note_sites(self, sites: AbstractSet[int]) -> None:
        """Conditions will read there."""
        self.measured = self.measured | sites

    def begin_use(self, use: PlansInForce) -> None:
        with self.table.lock:
            self.uses.add(use)
        self.note_sites(use.in_use.measured)

    def end_use(self, use: PlansInForce) -> None:
        """Nobody begins anything under it from now on. Harmless twice."""
        with self.table.lock:
            if use.is_open:
                use.is_open = False
                self.uses.discard(use)
                use.lease.give_back()

    # -- who is running --------------------------------------------------------------------------------

    def begin_running(self) -> None:
        """A forward or a generation begins in this thread."""
        with self.table.lock:
            me = threading.get_ident()
            self._running[me] = self._running.get(me, 0) + 1

    def end_running(self) -> None:
        with self.table.lock:
            me = threading.get_ident()
            self._running[me] -= 1
            if self._running[me] == 0:
                del self._running[me]

    def check_quiet(self) -> None:
        """SteerfastError where somebody would go on unsteered after a detach."""
        me = who_runs()
        with self.table.lock:
            running = len(self._running)
            elsewhere = sum(use.in_block and use.owner != me for use in self.uses)
        if running:
            raise SteerfastError(
                f"cannot detach while {running} thread(s) run the model (this one included), which would go on unsteered; wait "
                "for them"
            )
        if elsewhere:
            raise SteerfastError(
                f"cannot detach while {elsewhere} blocks of use() in other threads or tasks go on, which would be unsteered; let "
                "them end"
            )
        if any(engine.is_running() for engine in self.engines):
            raise SteerfastError(
                "cannot detach while a manager of continuous batching runs, whose requests would go on unsteered; stop it"
            )

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """While a ``generate`` runs in this thread: the plans that it began under are kept for it."""
        if self.here.now is not None:
            raise SteerfastError(
                "generate was called from inside a forward of the same model, whose rows it would overwrite; call it before or "
                "after"
            )
        state = self.state
        self.hold(generation)
        outer, state.generation = state.generation, generation
        self.begin_running()
        try:
            yield
        finally:
            self.end_running()
            state.generation, state.prepared = outer, None
            self.let_go(generation)
            self.restore()

    def restore(self) -> None:
        """A generation or a loop has ended in this thread: what is captured of bare forwards reads what is in force."""
        routing = self.routing
        if routing.captured.any:
            with suppress(SteerfastError):  # inherited, and over: the next forward says so
                self.follow()
            routing.restore()

    def prepare(
        self, generation: Generation, batch: int, length: int, mask: Tensor | None, seen: int
    ) -> None:
        """Route the forward that comes next in this thread, into fixed buffers: ``length`` columns of a generation after
        ``seen``."""
        if not self.is_attached:
            raise SteerfastError(
                "this model is detached, so nothing would be steered; attach it again"
            )
        check_written_before()
        use = generation.use
        routing = self.assigned(NOTHING if use is None else use.in_use)
        routing.in_use.check_batch(batch, exact=False)
        generation.route(routing, batch, length, mask, seen)
        again = partial(self.prepare, generation, batch, length, mask, seen)
        self.state.prepared = Prepared(batch * length, use, routing.in_use, again)

    def note(
        self,
        shape: tuple[int, int],
        routing: Routing,
        judging: Verdicts | None = None,
        fusing: bool = True,
    ) -> ForwardPass:
        """A forward by what has been routed for it in this thread; the last one, for the report."""
        now = ForwardPass(
            self.table,
            shape,
            routing.rows,
            routing.served,
            judging=judging,
            measured=self.measured,
            reads_first=routing.measure_first,
            fusing=fusing,
        )
        self.last = self.state.last = now
        return now
