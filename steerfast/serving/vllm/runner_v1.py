"""vLLM's first model runner: who comes and goes with a step, and where its rows stand.

The batch is read after the runner has updated and perhaps reordered it; a plan's rows follow from absolute positions
alone, so chunks, prefix hits, drafts and recomputation need nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from steerfast.serving.vllm.patching import wrap

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"


def install() -> None:
    """The CPU's runner inherits both."""
    wrap(_RUNNER, "_update_states", _update)
    wrap(_RUNNER, "_prepare_inputs", _prepare)


def _update(original: Any, runner: Any, scheduler_output: Any) -> Any:
    steering = getattr(runner, "steerfast", None)
    if steering is not None:
        steering.forget(scheduler_output.finished_req_ids)
    result = original(runner, scheduler_output)
    if steering is not None:
        for new in scheduler_output.scheduled_new_reqs:
            steering.admit(new.req_id, new.sampling_params)
    return result


def _prepare(original: Any, runner: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
    result = original(runner, scheduler_output, num_scheduled_tokens)
    steering = getattr(runner, "steerfast", None)
    if steering is not None:
        batch = runner.input_batch
        count = batch.num_reqs
        if getattr(runner, "use_async_spec_decode", False):
            # The host assumes that all drafts were accepted; the device knows.
            seats = [steering.seat_on_device(name) for name in batch.req_ids[:count]]
            rows = int(num_scheduled_tokens.sum())
            of_row = np.repeat(np.array(seats, np.int64), num_scheduled_tokens)
            steering.route_on_device(
                torch.from_numpy(of_row).to(runner.device, non_blocking=True),
                runner.positions[:rows],
            )
        else:
            first = batch.num_computed_tokens_cpu[:count].tolist()
            steering.route(batch.req_ids[:count], first, num_scheduled_tokens.tolist())
    return result
