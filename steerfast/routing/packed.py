"""Requests packed into one row of tokens, as serving engines do it: who holds which seat, and their route.

The engine says, for each step, which requests bring how many tokens from which position; one pass of the host
router and one copy make that a route. Everything else follows from the position, so chunks, prefix hits, preemption
and recomputation need no care here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from steerfast.errors import SteerfastError
from steerfast.plans.plan import Plan
from steerfast.routing.itinerary import Itinerary, itinerary, places_of
from steerfast.routing.route import SEATS
from steerfast.routing.router import NO_SEAT, make_router
from steerfast.routing.routing import Routing
from steerfast.routing.verdicts import Verdicts
from steerfast.table.entry import Entry, Held
from steerfast.table.lowering import Lowered
from steerfast.table.packing import Packed

ENGINE = "__warmup_"  # how the names of an engine's own requests begin; they are not steered


@dataclass
class Live:
    """A live request. held: what it has in the table; way: where in it that holds; length: of its prompt. read: how far
    its condition has been shown the prompt; forked_from: the request whose prompt it shares."""

    held: Held | None
    way: Itinerary
    length: int
    read: int = 0
    forked_from: str | None = None

    @property
    def entry(self) -> Entry | None:
        """Its plan in the table, if that was lowered here."""
        return self.held if isinstance(self.held, Entry) else None


def along(lowered: Lowered, prompt: Sequence[int]) -> Lowered:
    """As much of a plan as a request with this prompt needs. ValueError where a sequence is not in it."""
    return lowered.along(places_of(lowered, len(prompt), prompt))


class PackedRequests:
    """The requests of one engine. ``admit`` and ``forget`` may be called from any thread, ``route`` from the engine's.

    stream: where the engine computes; table and route are written there, in order with the steps that read them.
    """

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.stream: torch.cuda.Stream | None = None
        self._lock = threading.RLock()
        self._live: dict[str, Live] = {}
        self._conditional: dict[str, Live] = {}  # those of them whose plan has a condition
        self._seat_of: dict[
            str, int
        ] = {}  # where the router keeps the itinerary of whom it has seen
        self.measured: set[int] = set()  # sites where conditions of requests read
        self._router = make_router(SEATS)
        self._verdicts = Verdicts(SEATS, routing.table.device)
        self._seated: dict[int, Itinerary] = {}
        self._free = list(range(SEATS - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._live)

    def admit(self, name: str, plan: Plan | None, prompt: Sequence[int], children: int = 0) -> None:
        """Take a request, and the ``children`` that will be forked from it.

        Raises ValueError for a plan that does not fit the model or the prompt, TableFullError while the plans of
        live requests fill the table: wait for one to finish. Nothing is kept then.
        """
        with self._lock, self._on_stream():
            if name in self._live:
                raise ValueError(f"there is a live request {name!r} already; give another name")
            tokens = tuple(int(token) for token in prompt)
            table = self.routing.table
            part = None if plan is None else along(table.lowered(plan), tokens)
            entry = None if plan is None else table.acquire(plan, part)
            try:
                way = itinerary(entry, len(tokens), tokens)
            except Exception:
                assert entry is not None
                table.release(entry)
                raise
            family = {name: Live(entry, way, len(tokens))}
            for child in (f"{name}__child#{number}" for number in range(children)):
                if plan is not None:
                    table.acquire(plan, part)
                family[child] = Live(entry, way, len(tokens), forked_from=name)
            self._live.update(family)
            if entry is not None and entry.plan.condition is not None:
                self.measured |= {test.measured_at for test in entry.plan.condition.tests}
                self._conditional.update(family)

    def admit_packed(
        self,
        name: str,
        share: str,
        packed: Callable[[], Packed],
        way: Callable[[Sequence[int]], Itinerary],
        length: int,
    ) -> None:
        """Take a request whose plan was packed elsewhere: ``Table.hold(share, packed)``, and its way by the slots that its
        phases got. Raises as ``admit`` does."""
        with self._lock, self._on_stream():
            if name in self._live:
                raise ValueError(f"there is a live request {name!r} already; give another name")
            held = self.routing.table.hold(share, packed)
            self._live[name] = Live(held, way(held.slots), length)

    def forget(self, name: str) -> None:
        """A request has ended, however. Harmless twice."""
        with self._lock, self._on_stream():
            request = self._live.pop(name, None)
            if request is None:
                return
            self._conditional.pop(name, None)
            seat = self._seat_of.pop(name, NO_SEAT)
            if seat != NO_SEAT:
                del self._seated[seat]
                self._free.append(seat)
            if request.held is not None:
                self.routing.table.release(request.held)

    def __contains__(self, name: object) -> bool:
        return name in self._live

    def take_seat(self, name: str) -> int:
        """The seat of a live request, for an engine that makes its routes itself."""
        with self._lock, self._on_stream():
            return self._seat(name, 0)

    def itinerary_of(self, name: str) -> Itinerary:
        """What a request that has a seat meets at which position."""
        return self._seated[self._seat_of[name]]

    @property
    def scheduled(self) -> bool:
        """Whether any live plan has a schedule."""
        return any(one.way.gain_at for one in self._live.values())

    def names(self) -> list[str]:
        """The live requests."""
        return list(self._live)

    def plan_of(self, name: str) -> Plan | None:
        """The plan of a live request."""
        request = self._live.get(name)
        return None if request is None or request.entry is None else request.entry.plan

    def route(
        self, names: Sequence[str], first: Sequence[int], count: Sequence[int], rows: int
    ) -> None:
        """Fill the route of the next step: request i brings ``count[i]`` tokens from position ``first[i]`` on.

        rows: how many the model will see, padding behind them included. SteerfastError for an unknown request: one that
        nobody admitted must not run unsteered by accident.
        """
        with self._lock, self._on_stream():
            routing, seat_of = self.routing, self._seat_of
            try:
                seats = [seat_of[name] for name in names]
            except KeyError:  # somebody is new
                seats = [self._seat(name, at) for name, at in zip(names, first, strict=True)]
            if self._conditional:
                self._read_again(names, first)
            routing.rows = routing.buffers.fill(
                rows, lambda lines: self._router.fill(seats, first, count, lines)
            )
            routing.served = self._live_entries
            routing.judging, routing.measure_first = self._verdicts, False
            # A captured graph looks at every step, so that it need not know who is in the batch.
            routing.measuring = bool(self.measured) and routing.table.device.type == "cuda"
            if self._conditional:
                self._judge(names, first, count)

    def _seat(self, name: str, start: int) -> int:
        """The seat of a request that is scheduled; it takes one the first time."""
        if name in self._seat_of:
            return self._seat_of[name]
        if name.startswith(ENGINE):
            return NO_SEAT
        request = self._live.get(name)
        if request is None:
            raise SteerfastError(
                f"request {name!r} is scheduled, but was not admitted by this handle; add requests through the "
                "manager that the attached model made"
            )
        if not self._free:
            self._more_seats()
        seat = self._free.pop()
        self._router.set(seat, *(list(part) for part in request.way))  # type: ignore[arg-type]
        self._verdicts.seat(seat, request.entry, request.length)
        parent = self._seat_of.get(request.forked_from or "")
        if parent is not None and start > 0:
            self._verdicts.copy_seat(parent, seat)
        self._seat_of[name], self._seated[seat] = seat, request.way
        return seat

    def _read_again(self, names: Sequence[str], first: Sequence[int]) -> None:
        """A request that was preempted before its prompt was through reads it from the start, as if for the first time."""
        for name, start in zip(names, first, strict=True):
            request = self._conditional.get(name)
            if request is not None and start < request.read < request.length:
                self._verdicts.seat(self._seat_of[name], request.entry, request.length)
                request.read = start

    def _judge(self, names: Sequence[str], first: Sequence[int], count: Sequence[int]) -> None:
        """Verdicts into the gains, and whether this step reads prompts for them."""
        routing = self.routing
        routing.rows.gain.copy_(self._verdicts.gain(routing.rows.base, routing.rows.seat))
        for name, start, length in zip(names, first, count, strict=True):
            request = self._conditional.get(name)
            if request is not None:
                routing.measuring |= request.read < request.length
                request.read = max(request.read, start + length)

    def _live_entries(self) -> tuple[Entry | None, ...]:
        return tuple(request.entry for request in self._live.values())

    def _more_seats(self) -> None:
        """Twice as many."""
        before = self._router.seats
        self._router = make_router(2 * before)
        for seat, one in self._seated.items():
            self._router.set(seat, *(list(part) for part in one))  # type: ignore[arg-type]
        self._verdicts = self._verdicts.grown(2 * before)
        self._free = list(range(2 * before - 1, before - 1, -1))

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
