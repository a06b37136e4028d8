"""A request alone: a random prompt, and what ``generate`` answers it greedily."""

from __future__ import annotations

import torch

from steerfast import attach

VOCABULARY = 64


def prompt(seed, length):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (length,), generator=rng).tolist()


def alone(model, ids, plan, count):
    with attach(model) as handle, handle.use(plan):
        out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    return out[0, len(ids) :].tolist()
