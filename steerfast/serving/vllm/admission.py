"""Into the engine core: numbers are looked at, and a request whose plan would not fit beside those of live ones waits.

What arrives is checked beside the steps, where requests are made; what is no plan costs its own request an error. Room is
counted in the engine core, by what plans need at most, over the distinct plans of all requests that the scheduler
knows, waiting and preempted ones included. So a worker's table can never be too small, whatever is scheduled.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from steerfast.errors import SteerfastError
from steerfast.serving.arrival import arrived
from steerfast.serving.vllm.arming import is_on, settings_of
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.vllm.prefix_cache import wire_of
from steerfast.serving.wire import WIRE
from steerfast.table.packing import Cost


class Room:
    """What is left of slots, bank rows and programs, and who waits for it, in the order of arrival."""

    def __init__(self, capacity: Cost) -> None:
        self.free = list(capacity)
        self.holders: dict[str, int] = {}  # plans, or parts of them: requests that hold them
        self.waiting: OrderedDict[str, Any] = OrderedDict()

    def enter(self, wire: dict[str, Any]) -> bool:
        """Take the plan's room, if there is some."""
        share, cost = wire["share"], wire["cost"]
        if share not in self.holders:
            if any(need > left for need, left in zip(cost, self.free, strict=True)):
                return False
            self.free = [left - need for need, left in zip(cost, self.free, strict=True)]
            self.holders[share] = 0
        self.holders[share] += 1
        return True

    def leave(self, wire: dict[str, Any]) -> None:
        """A request with this plan has ended."""
        share = wire["share"]
        self.holders[share] -= 1
        if self.holders[share] == 0:
            del self.holders[share]
            self.free = [left + need for need, left in zip(wire["cost"], self.free, strict=True)]


def install() -> None:
    """Stand at the doors of the engine core and of its scheduler."""
    wrap("vllm.v1.engine.core:EngineCore", "preprocess_add_request", _look)
    scheduler = "vllm.v1.core.sched.scheduler:Scheduler"
    wrap(scheduler, "__init__", _make_room)
    wrap(scheduler, "add_request", _add)
    wrap(scheduler, "_free_request", _free)
    wrap(scheduler, "finish_requests", _finish)


def _look(original: Any, core: Any, request: Any) -> Any:
    """Before anything is made of a request, its blocks' keys for one."""
    wire, params = wire_of(request), request.sampling_params
    if wire is not None:
        config = core.vllm_config
        if not is_on(config):
            raise SteerfastError("this engine was not started to steer, and a plan has arrived")
        text, settings = config.model_config.hf_text_config, settings_of(config)
        room = Cost(settings.slots, settings.rows, settings.programs)
        checked = arrived(wire, text.num_hidden_layers, text.hidden_size, room)
        tokens = request.prompt_token_ids
        length = len(request.prompt_embeds if tokens is None else tokens)
        if checked["prompt"] != length:
            raise SteerfastError(
                f"a plan has arrived for a prompt of {checked['prompt']} tokens with one of {length}"
            )
        params.extra_args = {**params.extra_args, WIRE: checked}
    return original(core, request)


def _make_room(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    original(scheduler, *args, **kwargs)
    config = scheduler.vllm_config
    if is_on(config):
        settings = settings_of(config)
        scheduler.steerfast_room = Room(Cost(settings.slots, settings.rows, settings.programs))


def _add(original: Any, scheduler: Any, request: Any) -> Any:
    wire = wire_of(request)
    if wire is None or request.request_id in scheduler.requests:
        return original(scheduler, request)
    room = scheduler.steerfast_room
    # Behind those that wait already, unless its plan is there.
    if (room.waiting and wire["share"] not in room.holders) or not room.enter(wire):
        room.waiting[request.request_id] = request
        return None
    return original(scheduler, request)


def _free(original: Any, scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(scheduler, request, *args, **kwargs)
    wire = wire_of(request)
    if wire is not None:
        room = scheduler.steerfast_room
        room.leave(wire)
        while room.waiting:
            name, first = next(iter(room.waiting.items()))
            if not room.enter(wire_of(first) or {}):
                break
            del room.waiting[name]
            type(scheduler).add_request.__steerfast_original__(scheduler, first)
    return result


def _finish(original: Any, scheduler: Any, request_ids: Any, finished_status: Any) -> Any:
    """A client may leave while its request waits for room."""
    room = getattr(scheduler, "steerfast_room", None)
    gone: list[Any] = []
    if room is not None and room.waiting:
        if request_ids is not None:
            request_ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        names = list(room.waiting) if request_ids is None else request_ids
        gone = [room.waiting.pop(name) for name in names if name in room.waiting]
        for request in gone:
            request.status = finished_status
    return original(scheduler, request_ids, finished_status) + gone
