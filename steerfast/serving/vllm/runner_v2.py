"""vLLM's second model runner, which only runs on a GPU. Written from its source and tried with its data on a CPU; never run.

Its batch has rows on the device only: a row's request by ``query_start_loc``, the request's seat by its index, and
the position from the tensor that the model reads.
"""

from __future__ import annotations

import re
from types import MethodType
from typing import Any

import torch

from steerfast.errors import SteerfastError
from steerfast.routing.router import NO_SEAT
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.vllm.worker import arm

_RUNNER = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_INVENTED = re.compile(r"req_\d+_[0-9a-f]{32}|req_\d+_[0-9a-f-]{36}")  # profiling, idle ranks


def install() -> None:
    """Its model is armed with its state; preempted requests are removed there and come again, but stay with us."""
    wrap(_RUNNER, "load_model", _load)
    wrap(_RUNNER, "finish_requests", _finish)
    wrap(_RUNNER, "add_requests", _add)


def _load(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(runner, *args, **kwargs)
    arm(runner, runner.model, runner.vllm_config, runner.device)
    if getattr(runner, "steerfast", None) is not None:
        attach(runner.model_state, runner.steerfast)
    return result


def attach(state: Any, steering: Any) -> None:
    """Fill the rows whenever a ModelState prepares a forward."""
    prepare, dummy = state.prepare_inputs, state.prepare_dummy_inputs
    seat_of = torch.full((state.max_num_reqs,), NO_SEAT, dtype=torch.int64, device=state.device)
    steering.seat_of_index = seat_of

    def prepare_inputs(self: Any, input_batch: Any, req_states: Any) -> Any:
        route(steering, input_batch)
        return prepare(input_batch, req_states)

    def prepare_dummy_inputs(self: Any, num_reqs: int, num_tokens: int) -> Any:
        steering.rows.clear()
        return dummy(num_reqs, num_tokens)

    state.prepare_inputs = MethodType(prepare_inputs, state)
    state.prepare_dummy_inputs = MethodType(prepare_dummy_inputs, state)


def _finish(original: Any, runner: Any, scheduler_output: Any) -> Any:
    steering = getattr(runner, "steerfast", None)
    if steering is not None:
        steering.forget(scheduler_output.finished_req_ids)
    return original(runner, scheduler_output)


def _add(original: Any, runner: Any, scheduler_output: Any) -> Any:
    result = original(runner, scheduler_output)
    steering = getattr(runner, "steerfast", None)
    if steering is not None:
        indices = runner.req_states.req_id_to_index
        for new in scheduler_output.scheduled_new_reqs:
            steering.admit(new.req_id, new.sampling_params)
            seat = steering.seat_on_device(new.req_id)
            steering.seat_of_index[indices[new.req_id]] = seat
    return result


def route(steering: Any, batch: Any) -> None:
    """The rows of a batch; of an invented one none is steered. SteerfastError for a request that nobody announced."""
    unknown = [name for name in batch.req_ids if name not in steering.requests]
    if unknown:
        strange = [name for name in unknown if not _INVENTED.fullmatch(name)]
        if strange or len(unknown) < len(batch.req_ids):
            raise SteerfastError(
                f"request {(strange or unknown)[0]!r} is in a batch, but was never announced"
            )
        steering.rows.clear()
        return
    rows = batch.num_tokens_after_padding
    index = torch.arange(rows, device=batch.positions.device)
    ends = batch.query_start_loc[1 : batch.num_reqs + 1].to(torch.int64)
    place = torch.searchsorted(ends, index, right=True).clamp(max=batch.num_reqs - 1)
    seats = steering.seat_of_index[batch.idx_mapping[place].to(torch.int64)]
    real = (index < ends[-1]) & ~batch.is_padding[:rows]
    steering.route_on_device(torch.where(real, seats, NO_SEAT), batch.positions[:rows])
