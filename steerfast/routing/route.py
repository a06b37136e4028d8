"""Route: which slot each row of a forward pass reads, and with what gain. One serves all layers.

``Route`` finds it by tensor arithmetic on the model's device, from positions and a padding mask, with no
synchronisation: for a forward of its own, and for prompts. Where the host knows every position already (a
decode step, a serving engine), ``steerfast.routing.router`` is faster. Both fill the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerfast.plans.schedule import MAX_POINTS
from steerfast.routing.itinerary import NEVER, Itinerary
from steerfast.routing.router import BASE, GAIN, LINES, NO_SEAT, POSITION, SEAT, SLOT
from steerfast.table.entry import UNSTEERED
from steerfast.table.phases import MAX_SEGMENTS

SEATS = 256  # requests that the tensors have room for at first
# Rows are grouped into buffers of 2^k, each allocated once: a captured graph keeps reading its own.
_SMALLEST_BUFFER = 64
_RING = 4


class Rows(NamedTuple):
    """The route of N rows, each [N], on the device of the model.

    slot: int32, -1 for rows that are not steered (padding among them). gain: float32, the schedule's, times
    the verdict of the request's condition. seat: int32, the request's place, -1 for padding. position: int32,
    absolute. base: float32, the schedule's gain alone.
    """

    slot: Tensor
    gain: Tensor
    seat: Tensor
    position: Tensor
    base: Tensor


def padded(itineraries: Sequence[Itinerary]) -> dict[str, NDArray[Any]]:
    """Every field of an itinerary as an array [itineraries, places], as ``Route`` holds them."""
    count = len(itineraries)
    starts = np.full((count, MAX_SEGMENTS), NEVER)
    slots = np.full((count, MAX_SEGMENTS), UNSTEERED)
    gain_at = np.full((count, MAX_POINTS + 1), NEVER)
    gains = np.ones((count, MAX_POINTS + 1))
    for row, one in enumerate(itineraries):
        starts[row, : len(one.starts)], slots[row, : len(one.slots)] = one.starts, one.slots
        gain_at[row, : len(one.gain_at)] = one.gain_at
        if one.gains:
            gains[row, : len(one.gains)], gains[row, len(one.gains) :] = one.gains, one.gains[-1]
    return {"starts": starts, "slots": slots, "gain_at": gain_at, "gains": gains}


class Route:
    """The itineraries of the requests of a batch, on the device."""

    def __init__(self, device: torch.device | str = "cpu", seats: int = SEATS) -> None:
        self.device = torch.device(device)
        self._allocate(seats)

    def _allocate(self, seats: int) -> None:
        shape = {"dtype": torch.int64, "device": self.device}
        with torch.inference_mode(False):
            self.starts = torch.full((seats, MAX_SEGMENTS), NEVER, **shape)  # type: ignore[call-overload]
            self.slots = torch.full((seats, MAX_SEGMENTS), UNSTEERED, **shape)  # type: ignore[call-overload]
            # One point more than there can be: the last one has a next one, as high as itself.
            self.gain_at = torch.full((seats, MAX_POINTS + 1), NEVER, **shape)  # type: ignore[call-overload]
            self.gains = torch.ones(seats, MAX_POINTS + 1, dtype=torch.float64, device=self.device)
            self.of_row = torch.zeros(seats, **shape)  # type: ignore[call-overload]

    @property
    def seats(self) -> int:
        return len(self.of_row)

    def to(self, device: torch.device) -> None:
        """Make everything anew on another device; assign again."""
        self.device = device
        self._allocate(self.seats)

    def reserve(self, seats: int) -> bool:
        """Make room for more rows of requests. True where tensors moved: assign, and capture graphs, again."""
        if seats <= self.seats:
            return False
        self._allocate(1 << (seats - 1).bit_length())
        return True

    def assign(self, itineraries: Sequence[Itinerary], single: bool = False) -> None:
        """Row r of the batch follows ``itineraries[r]``; with ``single`` every row follows the only one."""
        count = len(itineraries)
        self.reserve(count)
        of_row = np.zeros(self.seats, np.int64) if single else np.full(self.seats, NO_SEAT)
        if not single:
            of_row[:count] = np.arange(count)
        with torch.inference_mode(False):
            self.of_row.copy_(torch.from_numpy(of_row))
            for name, values in padded(itineraries).items():
                getattr(self, name)[:count].copy_(torch.from_numpy(values))

    def look_up(
        self, batch: int, positions: Tensor, real: Tensor | None, seat: Tensor | None = None
    ) -> Rows:
        """The route of the tokens of a batch, B * T rows.

        positions: [B or 1, T] int64, absolute (padding does not count). real: [B, T], nonzero for
        tokens, zero for padding; None: no padding. seat: [B] int64; by default the place in the batch.
        """
        seat = torch.arange(batch, device=self.device) if seat is None else seat
        request = self.of_row[seat]
        positions = positions.expand(batch, -1).contiguous()
        there = (request >= 0)[:, None]
        real = there if real is None else there & (real != 0)
        request = request.clamp(min=0)
        place = torch.searchsorted(self.starts[request], positions, right=True) - 1
        slot = self.slots[request].gather(1, place.clamp(min=0))
        steered = real & (place >= 0)
        seat = seat[:, None].expand_as(positions)
        gain = self._gain(request, positions).to(torch.float32).reshape(-1)
        return Rows(
            torch.where(steered, slot, UNSTEERED).to(torch.int32).reshape(-1),
            gain,
            torch.where(real, seat, NO_SEAT).to(torch.int32).reshape(-1),
            positions.clamp(0, 2**31 - 1).to(torch.int32).reshape(-1),
            gain.clone(),
        )

    def _gain(self, request: Tensor, positions: Tensor) -> Tensor:
        """Piecewise linear through the points, their ends held."""
        at, gains = self.gain_at[request], self.gains[request]
        place = torch.searchsorted(at, positions, right=True)
        before, after = (place - 1).clamp(min=0), place.clamp(max=MAX_POINTS)
        start, stop = at.gather(1, before), at.gather(1, after)
        low, high = gains.gather(1, before), gains.gather(1, after)
        share = (positions - start).double() / (stop - start).clamp(min=1).double()
        return torch.where(place > 0, low + (high - low) * share, low)


class RowBuffers:
    """The rows of a route at fixed addresses: always the same memory for the same N."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.to(torch.device(device))

    def to(self, device: torch.device) -> None:
        """Start anew on another device."""
        self.device = device
        # Who has written the buffers last, where it may find them as they are; None once anybody has asked for them.
        self.written_by: object = None
        self._lines: dict[int, Tensor] = {}
        self._never: dict[int, Tensor] = {}
        self._staging: dict[int, Staging] = {}

    def at(self, rows: int) -> Rows:
        """The buffers of N rows."""
        self.written_by = None
        return self._rows(self._buffer(rows, self._lines), rows)

    def fill(self, rows: int, write: Callable[[NDArray[np.int32]], object]) -> Rows:
        """``write`` the rows [5, capacity] on the host; they are on their way when this returns."""
        lines = self._buffer(rows, self._lines)
        capacity = lines.shape[1]
        if capacity not in self._staging:
            self._staging[capacity] = Staging(lines)
        self._staging[capacity].send(write)
        return self.at(rows)

    def unsteered(self, rows: int) -> Rows:
        """The buffers, with nothing steered."""
        here = self.at(rows)
        here.slot.fill_(UNSTEERED)
        return here

    def idle(self, rows: int) -> Rows:
        """Rows in which nothing is steered, and which nobody ever writes."""
        return self._rows(self._buffer(rows, self._never), rows)

    def _buffer(self, rows: int, among: dict[int, Tensor]) -> Tensor:
        capacity = max(_SMALLEST_BUFFER, 1 << (rows - 1).bit_length())
        if capacity not in among:
            with torch.inference_mode(False):
                lines = torch.zeros(len(LINES), capacity, dtype=torch.int32, device=self.device)
                lines[SLOT] = lines[SEAT] = NO_SEAT
                for line in (GAIN, BASE):
                    lines[line].view(torch.float32).fill_(1.0)
            among[capacity] = lines
        return among[capacity]

    @staticmethod
    def _rows(lines: Tensor, rows: int) -> Rows:
        gain, base = (lines[line, :rows].view(torch.float32) for line in (GAIN, BASE))
        return Rows(lines[SLOT, :rows], gain, lines[SEAT, :rows], lines[POSITION, :rows], base)


class Staging:
    """Host memory on its way to a device tensor: a ring of pinned buffers, each written again only after
    the copy out of it is through. On the CPU the tensor itself is written.

    event: makes what marks a copy: ``record(stream)`` behind it, ``synchronize()`` waits for it.
    """

    def __init__(self, target: Tensor, event: Callable[[], torch.cuda.Event] | None = None) -> None:
        self.target = target
        self._ring: list[tuple[Tensor, torch.cuda.Event]] = []
        if target.device.type != "cpu" or event is not None:
            make: Callable[[], torch.cuda.Event] = torch.cuda.Event if event is None else event
            pinned = target.device.type == "cuda"
            for _ in range(_RING):
                buffer = torch.empty(target.shape, dtype=target.dtype, pin_memory=pinned)
                self._ring.append((buffer, make()))
        self._sent = 0

    def send(self, write: Callable[[NDArray[np.int32]], object]) -> None:
        """Let ``write`` fill a buffer, and enqueue its copy on the current stream."""
        if not self._ring:
            write(self.target.numpy())
            return
        buffer, event = self._ring[self._sent % len(self._ring)]
        if self._sent >= len(self._ring):
            event.synchronize()
        write(buffer.numpy())
        self.target.copy_(buffer, non_blocking=True)
        # The copies' stream is that of the target's device, which need not be the current one.
        device = self.target.device
        event.record(torch.cuda.current_stream(device) if device.type == "cuda" else None)
        self._sent += 1
