"""What the patched modules of one model share during a forward: route, table, and the handed-over norm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from steerfast import ops, reference, triton_ops
from steerfast.errors import SteerfastError
from steerfast.reference import Steering
from steerfast.route import Route
from steerfast.table import UNSTEERED, Entry, Table

_BY_NAME = {"reference": reference, "triton": triton_ops}


class ForwardPass:
    """State of the forward in progress. Not thread-safe, as a model with a KV cache is not either."""

    def __init__(self, table: Table, backend: str) -> None:
        self.table = table
        self.route = Route(table.device)
        self.backend = backend
        self.site_records = list(table.records.unbind(0))
        self.requests: tuple[Entry | None, ...] = (None,)
        self.served: tuple[Entry | None, ...] = (None,)  # those of the last forward, for its report
        # How many rows ``use`` was given plans for; None: one plan for all rows.
        self.count: int | None = None
        self.active = False
        self.prompt_lengths: Tensor | None = None
        self.row_slot, self.row_gain = self.route.buffers(1)
        self.shape = (0, 0)
        self.running = False  # between the start and the end of the model's forward
        self.knows_generate = True  # the model that generates is patched too
        self.fusing = True  # False where something wants to see every norm called
        self.generation: Generation | None = None
        self._routed_rows: int | None = None
        self._handed: tuple[Tensor, int | None, nn.Module, Tensor] | None = None
        self._frozen: tuple[int, Tensor, Tensor] | None = None

    def assign(
        self,
        requests: Sequence[Entry | None],
        single: bool = True,
        prompt_lengths: Tensor | None = None,
    ) -> None:
        """Set what the next forwards steer by: one request for all rows (``single``), or one a row."""
        self.requests = tuple(requests)
        self.count = None if single else len(self.requests)
        self.active = any(entry is not None for entry in self.requests)
        self.prompt_lengths = prompt_lengths
        self.route.assign(self.requests)

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardPass:
        """A copy of an attached model is idle. Under ``use`` there is none: nobody could end it there."""
        if self.active:
            raise SteerfastError(
                "a model cannot be copied while a plan is in use, since nobody could end it on the copy; "
                "end use() first, or copy the model before attaching it"
            )
        twin = object.__new__(ForwardPass)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def ops(self) -> ModuleType:
        """The functions of the backend. All have the same; ``ops`` covers both compiled backends."""
        return _BY_NAME.get(self.backend, ops)

    def to(self, device: torch.device) -> None:
        """Follow the model to another device."""
        self.table.to(device)
        self.route.to(device)
        self.site_records = list(self.table.records.unbind(0))

    # -- the route ------------------------------------------------------------------------------

    def begin(
        self,
        shape: Sequence[int],
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Any,
        device: torch.device,
    ) -> None:
        """Called by the model before its layers, with the shape [B, T] of its input.

        Uses the route that ``generate`` has filled, or else makes one for a bare forward: positions
        from a 2-D mask, position ids, or the cache's length; all rows are prompt unless
        ``use(..., prompt_lengths=)`` said otherwise.
        """
        self._handed = None
        batch, length = int(shape[0]), int(shape[1])
        self.shape = (batch, length)
        self.served = self.requests
        if device != self.table.device:
            self.to(device)
        if self._routed_rows is not None:
            routed, self._routed_rows = self._routed_rows, None
            if routed != batch * length:
                raise SteerfastError(
                    f"generate prepared {routed} rows but the model was called with {batch} x {length}; "
                    "this generation strategy is not supported"
                )
            return
        self._check_batch(batch, exact=self.generation is None)
        lengths = self._bare_prompt_lengths(batch, cache)
        positions, real = self._positions(attention_mask, position_ids, cache, length)
        slots = self.route.slots(batch, positions, real, lengths)
        self.row_slot = slots.reshape(-1).to(torch.int32)
        self.row_gain = torch.ones_like(self.row_slot, dtype=torch.float32)

    def route_generated(
        self, shape: Sequence[int], attention_mask: Tensor | None, cache: Any
    ) -> None:
        """Called by ``generate`` before each step, outside compiled code: fills the fixed buffers."""
        assert self.generation is not None
        batch, length = int(shape[0]), int(shape[1])
        device = self.table.device
        self._check_batch(batch, exact=False)
        lengths = self.generation.lengths(batch, attention_mask, cache, device)
        positions, real = self._positions(attention_mask, None, cache, length)
        slots = self.route.slots(batch, positions, real, lengths)
        self.row_slot, self.row_gain = self.route.buffers(batch * length)
        self.row_slot.copy_(slots.reshape(-1))
        self._routed_rows = batch * length

    def cancel_route(self) -> None:
        """Forget a prepared route that no forward has used (``generate`` ended or failed)."""
        self._routed_rows = None

    def _check_batch(self, batch: int, exact: bool) -> None:
        count = self.count
        if count is None or (batch == count if exact else batch % count == 0):
            return
        raise ValueError(
            f"use() was given {count} plans, but the batch has {batch} rows; give one plan (or None) "
            "per prompt, or a single plan for all"
        )

    def _cuts_phases(self) -> bool:
        return any(entry is not None and len(entry.phases) > 1 for entry in self.requests)

    def _bare_prompt_lengths(self, batch: int, cache: Any) -> Tensor | None:
        if self.generation is not None and self._cuts_phases():
            raise SteerfastError(
                "generate called the model with rows that it had not prepared (guidance or another "
                "extra pass), so prompt and generated tokens cannot be told apart there; use plans "
                "that select 'all' tokens with this strategy"
            )
        if self.prompt_lengths is None:
            continues = cache is not None and not self.knows_generate and cache.get_seq_length()
            if continues and self._cuts_phases():
                raise SteerfastError(
                    "the model that generates is not attached, only its decoder, so prompt and generated "
                    "tokens cannot be told apart; attach the LlamaForCausalLM, or give prompt_lengths"
                )
            return None
        if self.prompt_lengths.numel() != batch:
            raise ValueError(
                f"use() was given {self.prompt_lengths.numel()} prompt lengths, but the batch has {batch} rows"
            )
        return self.prompt_lengths.to(self.table.device)

    def _positions(
        self, attention_mask: Any, position_ids: Tensor | None, cache: Any, length: int
    ) -> tuple[Tensor, Tensor | None]:
        """(absolute positions [B or 1, T], real [B, T] or None) of the T tokens after the cache's."""
        device = self.table.device
        seen = 0 if cache is None else cache.get_seq_length()
        here = torch.arange(length, device=device) + seen
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            mask = attention_mask.to(device)
            if isinstance(seen, int) and mask.shape[1] < seen + length:
                raise ValueError(
                    f"attention_mask covers {mask.shape[1]} tokens, but the cache holds {seen} and "
                    f"{length} more come; pass the mask of the whole sequence"
                )
            positions = mask.to(torch.int64).cumsum(-1) - 1
            return positions.index_select(1, here), mask.index_select(1, here)
        if attention_mask is None and position_ids is not None and position_ids.ndim == 2:
            return position_ids.to(device, torch.int64), None
        if attention_mask is not None and self.active:
            of_tensor = isinstance(attention_mask, Tensor)
            kind = f"{attention_mask.ndim}-D" if of_tensor else "custom"
            raise SteerfastError(
                f"a {kind} attention mask does not tell padding from tokens, and padding is never "
                "steered; pass a 2-D attention_mask, or none if there is no padding"
            )
        return here.unsqueeze(0), None

    def route_alone(self, rows: int) -> None:
        """For a layer called by itself, outside of its model's forward."""
        if self.active:
            raise SteerfastError(
                f"a layer was called by itself with {rows} rows, which no forward of the model has "
                "routed; call the model, or end use() first"
            )
        self.shape, self.served = (1, rows), self.requests
        self.row_slot, self.row_gain = self.route.buffers(rows)
        self.row_slot.fill_(UNSTEERED)

    # -- what the layers read ---------------------------------------------------------------------

    def steering(self, site: int) -> Steering:
        """The kernel's view of one site for the rows of this forward."""
        return Steering(
            self.row_slot,
            self.row_gain,
            self.site_records[site],
            self.table.reads,
            self.table.bank,
        )

    def frozen(self, site: int) -> Steering:
        """The same by value, for a backward pass that runs the layer again after plans have changed."""
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


class Generation:
    """One call of ``generate``: the prompt lengths, known from its first complete mask on.

    width: columns of the prompt, padding and tokens that a given cache already holds included.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._lengths: Tensor | None = None

    def lengths(
        self, batch: int, attention_mask: Tensor | None, cache: Any, device: torch.device
    ) -> Tensor:
        """P of every row, [B] int64: the real tokens of its prompt."""
        if self._lengths is None:
            if attention_mask is None:
                seen = 0 if cache is None else int(cache.get_seq_length())
                self._lengths = torch.full((batch,), max(self.width, seen), device=device)
            else:
                # Speculative decoding may show candidates behind the prompt already.
                lengths = attention_mask[:, : self.width].to(device, torch.int64).sum(-1)
                missing = self.width - attention_mask.shape[1]
                if missing > 0:
                    # A chunk of a longer prompt: whatever comes now is prompt, and P is known at its end.
                    return lengths + missing
                self._lengths = lengths
        if self._lengths.numel() != batch:
            raise SteerfastError(
                f"generate changed its batch from {self._lengths.numel()} to {batch} rows; this "
                "generation strategy is not supported"
            )
        return self._lengths


def _version(tensor: Tensor) -> int | None:
    """The in-place counter where there is one: not while tracing, not for inference tensors."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version
