"""What the patched modules of one model share during a forward: route, table, and the handed-over norm."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.errors import SteerfastError
from steerfast.models.generation import Generation
from steerfast.ops.implementations import implementation
from steerfast.ops.records import Steering
from steerfast.routing.route import Rows
from steerfast.routing.route_op import route_op
from steerfast.routing.routing import Routing
from steerfast.table.table import Table


class ForwardPass:
    """State of the forward in progress. Not thread-safe, as a model with a KV cache is not either."""

    def __init__(self, table: Table, backend: str, measured: frozenset[int] = frozenset()) -> None:
        self.routing = Routing(table, measured)
        self.backend = backend
        self.shape = (0, 0)
        self.running = False  # between the start and the end of the model's forward
        self.fusing = True  # False where something wants to see every norm called
        self.generation: Generation | None = None
        # The thread of a serving engine, whose forwards are routed already; 0: there is none.
        self.packed_by = 0
        self._routed_rows: int | None = None
        self._handed: tuple[Tensor, int | None, nn.Module, Tensor] | None = None
        self._frozen: tuple[int, Tensor, Tensor] | None = None

    @property
    def table(self) -> Table:
        return self.routing.table

    @property
    def ops(self) -> ModuleType:
        """The functions of the backend. No attribute: a copied model would copy the module."""
        return implementation(self.backend)

    # -- the route ------------------------------------------------------------------------------

    def begin(
        self,
        like: Tensor,
        device: torch.device,
        tokens: Tensor | None,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Any,
    ) -> None:
        """Called by the model before its layers, with its input [B, T, ...] and the device they run on.

        Uses the route that ``generate`` or a serving engine has filled, or else makes one for a bare
        forward: positions from a 2-D mask, position ids, or the cache's length; all rows are prompt unless
        ``use(..., prompt_lengths=)`` said otherwise.
        """
        self._handed = None
        batch, length = int(like.shape[0]), int(like.shape[1])
        self.shape = (batch, length)
        if device != self.table.device:
            self.routing.to(device)
        compiling = torch.compiler.is_compiling()
        if self.packed_by and (compiling or self.packed_by == threading.get_ident()):
            if len(self.routing.rows.slot) != batch * length:
                self.routing.rows = self.routing.buffers.at(batch * length)
            return
        if self._routed_rows is not None:
            routed, self._routed_rows = self._routed_rows, None
            if routed != batch * length:
                raise SteerfastError(
                    f"generate prepared {routed} rows but the model was called with {batch} x {length}; "
                    "this generation strategy is not supported"
                )
            return
        flat = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
        mask = attention_mask if flat else None
        kind = "" if flat or attention_mask is None else _kind(attention_mask)
        if attention_mask is not None or (position_ids is not None and position_ids.ndim != 2):
            position_ids = None
        seen = 0 if cache is None else cache.get_seq_length()
        inside = self.generation is not None
        if compiling:
            begun = seen if isinstance(seen, Tensor) else torch.tensor(seen)
            key = self.routing.key
            rows = route_op(like, tokens, mask, position_ids, begun, kind, inside, key)
            self.routing.rows = Rows(*rows)
        else:
            self.routing.rows = self.routing.bare(
                like, tokens, mask, position_ids, seen, kind, inside
            )

    def route_generated(
        self, shape: Sequence[int], attention_mask: Tensor | None, cache: Any
    ) -> None:
        """Called by ``generate`` before each step, outside compiled code: fills the fixed buffers."""
        assert self.generation is not None
        batch, length = int(shape[0]), int(shape[1])
        self.routing.in_use.check_batch(batch, exact=False)
        seen = 0 if cache is None else cache.get_seq_length()
        if not isinstance(seen, int):  # a static cache keeps it on the device; the mask says it too
            seen = int(seen) if attention_mask is None else attention_mask.shape[1] - length
        self.generation.route(self.routing, batch, length, attention_mask, seen)
        self.routed(batch * length)

    def routed(self, rows: int) -> None:
        """The next forward has this many rows, and their route is in the buffers."""
        self._routed_rows = rows

    def cancel_route(self) -> None:
        """Forget a prepared route that no forward has used (``generate`` ended or failed)."""
        self._routed_rows = None

    def route_alone(self, rows: int) -> None:
        """For a layer called by itself, outside of its model's forward."""
        if self.routing.in_use.active:
            raise SteerfastError(
                f"a layer was called by itself with {rows} rows, which no forward of the model has "
                "routed; call the model, or end use() first"
            )
        self.shape = (1, rows)
        self.routing.nothing(rows)

    # -- what the layers read ---------------------------------------------------------------------

    def steering(self, site: int) -> Steering:
        """The kernel's view of one site for the rows of this forward."""
        rows, table = self.routing.rows, self.table
        return Steering(rows.slot, rows.gain, table.site_records[site], table.reads, table.bank)

    def measure(self, stream: Tensor, site: int) -> None:
        """Let conditions that are measured at this site read it. Compiled code always looks, so that it does
        not depend on the plans in use; elsewhere only a forward over prompts does."""
        routing = self.routing
        if site in routing.measured and (torch.compiler.is_compiling() or routing.measuring):
            routing.measure(stream, site)

    def frozen(self, site: int) -> Steering:
        """The steering by value, for a backward pass that runs the layer again after plans have changed."""
        if self.routing.measuring:
            raise SteerfastError(
                "a plan with a condition cannot be used with gradient checkpointing: the prompt would be "
                "measured again in the backward pass; switch checkpointing off"
            )
        if self._frozen is None or self._frozen[0] != self.table.version:
            table = self.table.reads.clone(), self.table.bank.clone()
            self._frozen = (self.table.version, *table)
        slot, gain, records, _, _ = self.steering(site)
        return Steering(slot.clone(), gain.clone(), records.clone(), *self._frozen[1:])

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


def _kind(mask: Any) -> str:
    """What a mask that is not 2-D is, for a message."""
    return f"{mask.ndim}-D" if isinstance(mask, Tensor) else "custom"


def _version(tensor: Tensor) -> int | None:
    """The in-place counter where there is one: not while tracing, not for inference tensors."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version
