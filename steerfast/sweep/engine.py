"""Many plans x many prompts: every batch holds rows of many plans, and plans share what they have in common.

The answers are those of one prompt at a time (to the rounding of matrix products, which depends on the batch's shape).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.evaluating import evaluating
from steerfast.models import find_decoder
from steerfast.models.projection import Projection
from steerfast.models.tokens import are_many, as_ids
from steerfast.plans.plan import Plan
from steerfast.sweep.forked import ForkedPass, Readout

PADDING = 1 / 16  # at most this share of a bucket's tokens is padding
# Beyond this many tokens at once, larger batches gain nothing.
SATURATED = {"cpu": 4096, "cuda": 65536}

MakeReadout = Callable[[Any], Readout]  # from the vocabulary projection


def sweep(
    model: Any,
    plans: Sequence[Plan | None],
    prompts: Sequence[Sequence[int]],
    readout: MakeReadout,
    *,
    batch_tokens: int | None = None,
    forking: bool = True,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """Read every prompt under every plan: [plans, prompts, width] float64.

    model: a causal language model that is not attached. plans: without conditions; None is unsteered.
    prompts: token ids, any lengths; they all count as prompt. readout: called once, with the vocabulary projection; what
    it gives is told the prompts of its rows by their numbers in ``prompts``, see ``readouts``.
    batch_tokens: rows x tokens at once; default from the memory there is. done: told how many more
    (plan, prompt) have been read. forking=False is for measurements.

    Raises as ``ForkedPass`` does, and TypeError or ValueError for a prompt that is empty, or no ids of this model.
    """
    if not are_many(prompts):
        raise TypeError(f"a sweep takes a list of prompts, got {type(prompts).__name__}")
    prompts = [as_ids(prompt, f"prompt {at}", model) for at, prompt in enumerate(prompts)]
    empty = [number for number, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens; every prompt needs at least one")
    if not plans or not prompts:
        raise ValueError(
            f"a sweep needs plans and prompts, got {len(plans)} plans and {len(prompts)} prompts"
        )
    tokens = default_batch_tokens(model) if batch_tokens is None else batch_tokens
    result: Tensor | None = None
    with evaluating(model):
        forked = ForkedPass(model, plans, forking=forking)
        read = readout(Projection(model))
        for bucket in buckets([len(prompt) for prompt in prompts], tokens):
            values = forked.run(
                [prompts[number] for number in bucket],
                _OfBucket(read, bucket),
                batch_tokens=tokens,
                done=done,
            )
            tokens = min(tokens, forked.batch_tokens)  # as memory allowed
            if result is None:
                result = torch.empty((len(plans), len(prompts), read.width), dtype=torch.float64)
            result[:, bucket] = values
    assert result is not None
    return result


class _OfBucket:
    """A read-out that is told a prompt's number in its bucket, for one that goes by the caller's."""

    def __init__(self, read: Readout, bucket: Sequence[int]) -> None:
        self._read, self._bucket = read, bucket
        self.last_only, self.width = read.last_only, read.width

    def __call__(self, normed: Tensor, prompts: Sequence[int]) -> Tensor:
        return self._read(normed, [self._bucket[prompt] for prompt in prompts])


def buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Numbers of prompts that run together: of almost one length, the longest first.

    The longest come first so that memory runs out at the start or not at all.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    result: list[list[int]] = []
    used = 0
    for number in order:
        if result:
            longest, count = lengths[result[-1][0]], len(result[-1]) + 1
            fits = longest * count <= batch_tokens
            if fits and used + lengths[number] >= (1 - PADDING) * longest * count:
                result[-1].append(number)
                used += lengths[number]
                continue
        result.append([number])
        used = lengths[number]
    return result


def default_batch_tokens(model: nn.Module) -> int:
    """How many tokens to run at once: as fills the machine, within a quarter of its memory.

    Depends on the machine only, never on how busy it is: the same sweep forms the same batches again.
    """
    weight = next(model.parameters())
    decoder = find_decoder(model)
    # Of one layer, alive together: streams, norm and branch, the MLP's three, queries, keys and values; and
    # the stream that each fork on the way keeps.
    width = decoder.hidden_size
    within = getattr(decoder.config, "intermediate_size", None)  # not every config names it so
    values = 8 * width + 3 * (within if isinstance(within, int) else 4 * width)
    per_token = weight.element_size() * values
    if weight.device.type == "cuda":
        memory = torch.cuda.get_device_properties(weight.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = memory // 4 // per_token
    return int(min(SATURATED.get(weight.device.type, 65536), max(fits, 1)))
