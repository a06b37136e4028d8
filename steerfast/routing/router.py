"""Router: the route of a ragged batch, filled on the host in one pass.

Serving knows, on the host, which request brings how many tokens from which position. That is all a
route needs: no tensor arithmetic, no mask. The compiled router (``csrc/router.h``) takes microseconds for hundreds of
requests; this module has the same in Python, for installations without it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerfast.ops import backends

# The lines of a route's rows, [5, capacity] int32; gains as the bits of float32, the second time for conditions.
SLOT, GAIN, SEAT, POSITION, BASE = LINES = range(5)
NO_SEAT = -1
Ints = list[int]
Floats = list[float]
Lines = NDArray[np.int32]


class Router(Protocol):
    """Itineraries by seat (a place that a live request holds), and routes made of them."""

    @property
    def seats(self) -> int:
        """How many there are."""

    def set(self, seat: int, starts: Ints, slots: Ints, gain_at: Ints, gains: Floats) -> None:
        """Give a seat its itinerary. IndexError for a seat beyond the router's, ValueError for one out of order."""

    def fill(self, seats: ArrayLike, first: ArrayLike, count: ArrayLike, rows: Lines) -> int:
        """Fill all of ``rows`` [5, capacity]: slot, gain, seat, position, and the gain again; returns N.

        Request i, in ``seats[i]`` (-1: not steered), brings ``count[i]`` tokens from position ``first[i]`` on;
        requests follow each other. Rows beyond N are not steered. Raises ValueError for a batch that does not fit,
        IndexError for an unknown seat; nothing is written then.
        """


class PythonRouter:
    """The same without the compiled module."""

    def __init__(self, seats: int) -> None:
        if seats < 1:
            raise ValueError("a router needs at least one seat")
        self._seats = seats
        self._itineraries: dict[int, tuple[Ints, Ints, Ints, Floats]] = {}

    @property
    def seats(self) -> int:
        return self._seats

    def set(self, seat: int, starts: Ints, slots: Ints, gain_at: Ints, gains: Floats) -> None:
        self._check(seat)
        if len(starts) != len(slots) or len(gain_at) != len(gains):
            raise ValueError("an itinerary has a slot for every start, a gain for every point")
        if list(starts) != sorted(starts) or list(gain_at) != sorted(gain_at):
            raise ValueError("an itinerary's positions must ascend")
        self._itineraries[seat] = list(starts), list(slots), list(gain_at), list(gains)

    def fill(self, seats: ArrayLike, first: ArrayLike, count: ArrayLike, rows: Lines) -> int:
        spans = np.stack([np.asarray(each, dtype=np.int64) for each in (seats, first, count)])
        for index, (seat, start, length) in enumerate(spans.T.tolist()):
            if seat >= 0:
                self._check(seat)
            if length < 0 or start < 0:
                raise ValueError(
                    f"request {index} of the batch has {length} tokens from position {start}"
                )
        total = int(spans[2].sum())
        if total > rows.shape[1]:
            raise ValueError(f"the batch has {total} rows, the route's buffer {rows.shape[1]}")
        for line, value in zip(LINES, (-1, _bits(1.0), NO_SEAT, 0, _bits(1.0)), strict=True):
            rows[line] = value
        row = 0
        for seat, start, length in spans.T.tolist():
            empty: tuple[Ints, Ints, Ints, Floats] = ([], [], [], [])
            starts, slots, gain_at, gains = self._itineraries.get(seat, empty)
            for position in range(start, start + length):
                place = bisect_right(starts, position)
                rows[SLOT, row] = slots[place - 1] if place else -1
                rows[GAIN, row] = rows[BASE, row] = _bits(_gain(gain_at, gains, position))
                rows[SEAT, row], rows[POSITION, row] = seat, position
                row += 1
        return total

    def _check(self, seat: int) -> None:
        if not 0 <= seat < self.seats:
            raise IndexError(f"seat {seat} of a router with {self.seats}")


def make_router(seats: int) -> Router:
    """The compiled router, or the one in Python where nothing was built."""
    compiled: Any = backends.compiled_module()
    router: Router = PythonRouter(seats) if compiled is None else compiled.Router(seats)
    return router


def _gain(gain_at: Ints, gains: Floats, position: int) -> float:
    if not gain_at:
        return 1.0
    place = bisect_right(gain_at, position)
    if place == 0 or place == len(gain_at):
        return gains[min(place, len(gains) - 1)]
    share = (position - gain_at[place - 1]) / (gain_at[place] - gain_at[place - 1])
    return gains[place - 1] + (gains[place] - gains[place - 1]) * share


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))
