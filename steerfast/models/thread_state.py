"""What a thread, or an asyncio task, that runs an attached model has for its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from steerfast.models.forward_pass import ForwardPass
from steerfast.models.generation import Generation
from steerfast.models.in_force import PlansInForce
from steerfast.routing.in_use import InUse
from steerfast.routing.routing import Routing
from steerfast.table.table import Table


class Prepared(NamedTuple):
    """A route in the buffers, for the forward that comes next: of so many rows, by a use (None: not steered), made for what
    that said then; ``again`` makes it anew."""

    rows: int
    use: PlansInForce | None
    in_use: InUse
    again: Callable[[], None]


class ThreadState:
    """routing: its routes. generation: the ``generate`` in progress. prepared: what that, or a loop, has prepared. packed:
    of a serving engine's thread, the routing that the engine fills. last: its last forward. reading: of prompts by conditions, the
    last outside of a generation. outer_mask: that a model around the decoder was given, while it runs."""

    def __init__(self, table: Table) -> None:
        self.routing = Routing(table)
        self.generation: Generation | None = None
        self.prepared: Prepared | None = None
        self.packed: Routing | None = None
        self.last: ForwardPass | None = None
        self.reading = 0
        self.outer_mask: Tensor | None = None
