"""Decode speed of one model three ways: stock, patched, and patched with every layer steered.

The variants share their weights and take turns step by step, so that a busy machine slows all alike.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from steerfast.models import attach, find_decoder
from steerfast.plans.plan import Plan


class DecodeSpeed(NamedTuple):
    """Medians over ``steps`` single-token steps, milliseconds."""

    stock: float
    patched: float
    steered: float
    steps: int


def decode_speed(
    model: Any,
    plan: Plan,
    *,
    prompt_tokens: int = 32,
    batch: int = 1,
    steps: int = 100,
    progress: Callable[[], None] | None = None,
) -> DecodeSpeed:
    """Medians of ``step_times``."""
    times = step_times(
        model, plan, prompt_tokens=prompt_tokens, batch=batch, steps=steps, progress=progress
    )
    median = {name: statistics.median(series) for name, series in times.items()}
    return DecodeSpeed(median["stock"], median["patched"], median["steered"], steps)


@torch.inference_mode()
def step_times(
    model: Any,
    plan: Plan,
    *,
    prompt_tokens: int = 32,
    batch: int = 1,
    steps: int = 100,
    control: bool = False,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of each decode step (a forward with a KV cache, one new token per row).

    model: not attached. Returns {``stock``, ``patched``, ``steered``: [steps]}, and with ``control``
    ``stock again``, the A/A comparison that shows what the machine's noise does to a ratio. Step i of
    every variant is taken before step i + 1 of any, in a rotating order; all decode the same tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(find_decoder(model).config.vocab_size)
    device = next(model.parameters()).device
    prompt = torch.randint(vocabulary, (batch, prompt_tokens), generator=generator).to(device)
    following = torch.randint(vocabulary, (steps, batch, 1), generator=generator).to(device)
    idle, busy = attach(twin(model)), attach(twin(model))
    runners: dict[str, Any] = {"stock": model, "patched": idle.model, "steered": busy.model}
    if control:
        runners["stock again"] = twin(model)
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    with busy.use(plan):
        caches = {
            name: runner(prompt, use_cache=True).past_key_values for name, runner in runners.items()
        }
        for step, tokens in enumerate(following):
            shift = step % len(names)
            for name in names[shift:] + names[:shift]:
                begin = time.perf_counter()
                runners[name](tokens, past_key_values=caches[name], use_cache=True)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(1e3 * (time.perf_counter() - begin))
            if progress is not None:
                progress()
    return times


def twin(model: Any) -> Any:
    """A second module tree over the same parameters and buffers: patching one leaves the other stock."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
