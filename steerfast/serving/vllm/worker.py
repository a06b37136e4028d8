"""A worker's part: the table, who is live, and the route of every step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steerfast import __version__
from steerfast.errors import SteerfastError
from steerfast.ops import backends
from steerfast.routing.packed import PackedRequests
from steerfast.routing.routing import Routing
from steerfast.serving.arrival import packed_of, way_of
from steerfast.serving.settings import Settings
from steerfast.serving.vllm.arming import is_on, settings_of
from steerfast.serving.vllm.device_route import DeviceRoute
from steerfast.serving.vllm.norms import find_llama, steer_norms
from steerfast.serving.vllm.rows import FixedRows
from steerfast.serving.wire import WIRE
from steerfast.table.table import Table


class Steering:
    """What one worker steers its model by.

    Nothing here depends on what a client says, but for plans that the front end has read and lowered, and the engine core
    has looked at and found room for. An exception is therefore a fault of this code, and ends the engine rather than leave
    a request unsteered. A step does no more for a new plan than to copy its numbers.
    """

    def __init__(self, model: Any, config: Any, device: torch.device) -> None:
        self.settings: Settings = settings_of(config)
        self.backend = _backend(device)
        llama = find_llama(model)
        settings, text = self.settings, config.model_config.hf_text_config
        self.table = Table(
            text.num_hidden_layers,
            text.hidden_size,
            slots=settings.slots,
            bank_rows=settings.rows,
            programs=settings.programs,
            device=device,
        )
        scheduler = config.scheduler_config
        most = max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
        graphs = config.compilation_config.max_cudagraph_capture_size or 0
        self.rows = FixedRows(max(most, graphs), device)
        self.routing = Routing(self.table)
        self.routing.buffers = self.rows
        self.requests = PackedRequests(self.routing)
        every = self.rows.at(self.rows.capacity)
        steer_norms(llama, settings.mode, self.table, every.slot, every.gain)
        self.device_route: DeviceRoute | None = None
        self._on_device: dict[str, int] = {}
        self.steps, self.seconds = 0, 0.0

    def admit(self, name: str, params: Any) -> None:
        """A request that the scheduler has sent. Once more is harmless: preempted ones stay."""
        if name in self.requests:
            return
        extra = None if params is None else params.extra_args
        wire = extra.get(WIRE) if extra else None
        if wire is None:
            self.requests.admit(name, None, ())
            return
        packed = partial(packed_of, wire, self.table.hidden_size)
        self.requests.admit_packed(
            name, wire["share"], packed, partial(way_of, wire), wire["prompt"]
        )

    def forget(self, names: Sequence[str]) -> None:
        """Requests that have ended."""
        for name in names:
            self.requests.forget(name)
            self._on_device.pop(name, None)

    def route(self, names: Sequence[str], first: Sequence[int], count: Sequence[int]) -> None:
        """Fill the rows of a step."""
        begun = time.perf_counter()
        self.requests.route(names, first, count, sum(count))
        self.seconds += time.perf_counter() - begun
        self.steps += 1

    def seat_on_device(self, name: str) -> int:
        """The seat of an admitted request, its itinerary on the device."""
        if name in self._on_device:
            return self._on_device[name]
        seat = self.requests.take_seat(name)
        if self.device_route is None:
            self.device_route = DeviceRoute(self.table.device)
        if seat >= self.device_route.seats:
            self.device_route = self.device_route.grown(2 * self.device_route.seats)
        self.device_route.set(seat, self.requests.itinerary_of(name))
        self._on_device[name] = seat
        return seat

    def route_on_device(self, seats: Tensor, positions: Tensor) -> None:
        """Fill the rows of a step from [N] int64 tensors; ``seat_on_device`` has been called for everybody in it."""
        assert self.device_route is not None
        begun = time.perf_counter()
        rows = self.device_route.rows(seats, positions, self.requests.scheduled)
        self.rows.put(rows)
        self.seconds += time.perf_counter() - begun
        self.steps += 1

    def status(self) -> dict[str, Any]:
        """For ``armed`` and ``/steerfast/health``."""
        return {
            "armed": True,
            "version": __version__,
            "mode": self.settings.mode,
            "backend": self.backend,
            "slots": self.settings.slots,
            "slots_in_use": self.table.slots_in_use,
            "rows": self.settings.rows,
            "programs": self.settings.programs,
            "requests": len(self.requests),
            "steps": self.steps,
            "route_seconds": self.seconds,
        }


def _backend(device: torch.device) -> str:
    """Which kernels run; SteerfastError on a GPU without compiled ones, where the reference would be slow and break graphs."""
    there = {status.name: status for status in backends.statuses()}
    own = there.get(device.type)
    if own is not None and own.available:
        return own.name
    if device.type == "cpu":
        return "reference"
    raise SteerfastError(
        f"there are no compiled kernels for {device.type} ({own.detail if own else 'unknown'}); build steerfast where nvcc "
        "is, with STEERFAST_BUILD=cuda"
    )


def arm(runner: Any, model: Any, config: Any, device: torch.device) -> None:
    """Steer a runner's model, where the engine's front end expects it."""
    if is_on(config) and getattr(runner, "steerfast", None) is None:
        with torch.inference_mode(False):
            runner.steerfast = Steering(model, config, device)
