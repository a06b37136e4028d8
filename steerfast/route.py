"""Route: which slot each row of a forward pass reads, from positions and requests.

One route serves all layers of a forward pass. Everything here is tensor arithmetic on the device of
the model, without synchronisation, so it can be traced into a compiled forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerfast.table import UNSTEERED, Entry

MAX_PHASES = 2  # phases of one plan; fixed, so that changing plans never changes a shape
NEVER = 2**40  # a position that no token reaches
# Rows are grouped into buffers of 2^k, each allocated once: a captured graph keeps reading its own.
_SMALLEST_BUFFER = 64


class Route:
    """Per-row slots and gains, and the requests they come from.

    row_slot: [N] int32, -1 for rows that are not steered (padding among them). row_gain: [N] float32.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._slots = torch.full((1, MAX_PHASES), UNSTEERED, dtype=torch.int64, device=device)
        self._offsets = torch.zeros((1, MAX_PHASES), dtype=torch.int64, device=device)
        self._from_prompt_end = torch.zeros((1, MAX_PHASES), dtype=torch.int64, device=device)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def to(self, device: torch.device) -> None:
        """Move everything; buffers are made anew."""
        self.device = device
        self._slots, self._offsets = self._slots.to(device), self._offsets.to(device)
        self._from_prompt_end = self._from_prompt_end.to(device)
        self._buffers = {}

    def assign(self, requests: Sequence[Entry | None]) -> None:
        """Set the requests of the batch: one entry of the table each, or None for unsteered.

        A single request stands for every row of any batch.
        """
        slots, offsets, relative = [], [], []
        for entry in requests:
            phases = [] if entry is None else list(zip(entry.slots, entry.starts, strict=True))
            assert len(phases) <= MAX_PHASES
            rest = MAX_PHASES - len(phases)
            slots.append([slot for slot, _ in phases] + [UNSTEERED] * rest)
            offsets.append([start.offset for _, start in phases] + [NEVER] * rest)
            relative.append([int(start.from_prompt_end) for _, start in phases] + [0] * rest)
        self._slots = torch.tensor(slots, dtype=torch.int64, device=self.device)
        self._offsets = torch.tensor(offsets, dtype=torch.int64, device=self.device)
        self._from_prompt_end = torch.tensor(relative, dtype=torch.int64, device=self.device)

    def slots(
        self, batch: int, positions: Tensor, real: Tensor | None, prompt_lengths: Tensor | None
    ) -> Tensor:
        """The slot of every token, [B, T] int64.

        positions: [B or 1, T] int64, absolute (padding does not count). real: [B, T], nonzero for
        tokens, zero for padding; None: no padding. prompt_lengths: [B] int64; None: all is prompt.
        B is a multiple of the number of requests: row r belongs to request r // (B / requests).
        """
        each = batch // self._slots.shape[0]
        slots = self._slots.repeat_interleave(each, 0)
        starts = self._offsets.repeat_interleave(each, 0)
        lengths = NEVER if prompt_lengths is None else prompt_lengths[:, None]
        starts = starts + self._from_prompt_end.repeat_interleave(each, 0) * lengths
        begun = positions[:, :, None] >= starts[:, None, :]
        phase = (begun.sum(-1) - 1).expand(batch, -1)
        chosen = slots.gather(1, phase.clamp(min=0))
        steered = (phase >= 0) if real is None else (phase >= 0) & (real != 0)
        return torch.where(steered, chosen, UNSTEERED)

    def buffers(self, rows: int) -> tuple[Tensor, Tensor]:
        """(row_slot, row_gain) for N rows: always the same memory for the same N."""
        capacity = max(_SMALLEST_BUFFER, 1 << (rows - 1).bit_length())
        if capacity not in self._buffers:
            with torch.inference_mode(False):
                slot = torch.full((capacity,), UNSTEERED, dtype=torch.int32, device=self.device)
                gain = torch.ones(capacity, dtype=torch.float32, device=self.device)
            self._buffers[capacity] = slot, gain
        slot, gain = self._buffers[capacity]
        return slot[:rows], gain[:rows]
