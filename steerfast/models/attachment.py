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
from steerfast.models.compiled_forwards import CompiledForwards
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.forwards import Forwards
from steerfast.models.rebind import Rebindings, standing_in
from steerfast.models.thread_state import Prepared, ThreadState
from steerfast.ops.implementations import implementation
from steerfast.routing.in_use import NOTHING, InUse
from steerfast.routing.per_thread import PerThread, who_runs
from steerfast.routing.routing import Routing
from steerfast.table.table import Table

if TYPE_CHECKING:
    from steerfast.models.generation import Generation
    from steerfast.models.use import Use


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
        self.forwards, self.compiled = Forwards(self), CompiledForwards(self)
        self._states = PerThread(lambda: ThreadState(table))
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
    def routing(self) -> Routing:
        """Of this thread, or task."""
        return self.state.routing

    @property
    def now(self) -> ForwardPass | None:
        """The forward in progress in this thread."""
        return self.compiled.traced if torch.compiler.is_compiling() else self.forwards.now

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
        routing, in_use = self.routing, self.in_use()
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


def attachment_of(decoder: nn.Module) -> Attachment | None:
    """What an attached decoder is attached by; None where it is not."""
    ours = standing_in(decoder)
    return None if ours is None else ours.shared  # type: ignore[no-any-return]
