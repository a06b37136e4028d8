"""Compiled steps: other plans, coefficients, gates, conditions and routes never recompile, and act at once."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import StaticCache

from steerfast import (
    Condition,
    Gate,
    Plan,
    Positions,
    Schedule,
    SteeringVector,
    Term,
    Test,
    attach,
    steer,
)

BATCH, PROMPT, CHANGES = 2, 6, 1000


def tiny():
    return tiny_llama(hidden=32, layers=2, vocabulary=64, heads=2, spread=0.2, seed=1)


def vector(seed):
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {layer: torch.randn(32, generator=rng) for layer in range(2)})


def random_plan(rng):
    """A plan, a list of plans, or none: whatever a server might be asked for next."""

    def one():
        if rng.random() < 0.2:
            return None
        number = rng.randrange(10_000)
        select = rng.choice(["all", "prompt", "generated", Positions(rng.randrange(9))])
        kind = rng.randrange(4)
        gate = Gate("hard", vector(number + 1)) if kind == 1 else None
        first = Term(vector(number), rng.uniform(-3, 3), gate=gate, select=select)
        ablated = Term(vector(number + 2), operator="ablate", layers=(rng.randrange(2),))
        terms = (first, ablated) if kind == 2 else (first,)
        schedule = Schedule.ramp(0, 5, rng.random(), rng.random()) if kind == 3 else None
        condition = (
            Condition(Test("projection", vector(number + 3), 0, threshold=rng.uniform(-1, 1)))
            if rng.random() < 0.3
            else None
        )
        return Plan(terms, rng.choice(["none", "preserve"]), schedule, condition)

    return one() if rng.random() < 0.4 else [one() for _ in range(BATCH)]


@pytest.fixture
def counting():
    """(compiles so far): every graph that dynamo makes, wherever."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def test_a_compiled_forward_meets_a_thousand_plans(counting):
    """Prefill and decode with a static cache, compiled whole, against the same model in eager mode."""
    model, eager = tiny(), tiny()
    ids = torch.randint(1, 64, (BATCH, PROMPT), generator=torch.Generator().manual_seed(2))
    following = torch.randint(1, 64, (BATCH, 1), generator=torch.Generator().manual_seed(3))
    lengths = [PROMPT] * BATCH
    sites = [("resid_post", 0)]
    rng = random.Random(0)
    with attach(model, measured=sites, slots=16) as fast, attach(eager, slots=16) as slow:
        compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="eager")
        cache = StaticCache(config=model.config, max_cache_len=16)

        @torch.no_grad()
        def run(forward, plans, handle, cache):
            with handle.use(plans, prompt_lengths=lengths):
                first = forward(ids, past_key_values=cache).logits
                second = forward(following, past_key_values=cache).logits
            return torch.cat([first, second], 1)

        run(compiled, None, fast, cache)
        cache.reset()
        run(compiled, random_plan(rng), fast, cache)
        before = counting()
        assert before > 0
        different = 0
        for change in range(CHANGES):
            plans = random_plan(rng)
            cache.reset()
            got = run(compiled, plans, fast, cache)
            if change % 20 == 0:
                wanted = run(eager, plans, slow, StaticCache(config=model.config, max_cache_len=16))
                assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-4), change
                plain = run(eager, None, slow, StaticCache(config=model.config, max_cache_len=16))
                different += not torch.allclose(plain, wanted, atol=1e-3)
        assert counting() == before
        assert different > CHANGES / 20 / 2  # the comparison has seen steering


def test_a_compiled_generation_meets_other_plans(counting):
    """``generate`` with a static cache and a compiled forward: its route is filled outside of the graph."""
    model, eager = tiny(), tiny()
    ids = torch.randint(1, 64, (BATCH, PROMPT), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    rng = random.Random(1)
    with attach(model, measured=[("resid_post", 0)]) as fast, attach(eager) as slow:
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="eager")
        asked_static = {**asked, "cache_implementation": "static"}
        for plans in (None, random_plan(rng)):
            with fast.use(plans):
                model.generate(ids, **asked_static, disable_compile=True)
        before = counting()
        assert before > 0
        for _ in range(30):
            plans = random_plan(rng)
            with fast.use(plans):
                got = model.generate(ids, **asked_static, disable_compile=True)
            with slow.use(plans):
                assert torch.equal(got, eager.generate(ids, **asked))
        assert counting() == before


def test_plans_change_between_the_tokens_of_a_generation():
    """From the next token on, in place where the table is full, and never half."""
    model = tiny()
    ids = torch.randint(1, 64, (BATCH, PROMPT), generator=torch.Generator().manual_seed(2))
    one, two = steer(vector(1), 3.0), steer(vector(1), -3.0)

    class Change:
        """A stopping criterion that stops nothing: it is called between two tokens."""

        def __init__(self, use, at, plan):
            self.use, self.at, self.plan = use, at, plan

        def __call__(self, ids, scores, **_):
            if ids.shape[1] == self.at:
                self.use.change(self.plan)
            return torch.zeros(len(ids), dtype=torch.bool)

    def by_hand(change_at):
        """Token by token, each from the whole sequence, with every token under the plan of its time."""
        with attach(tiny()) as handle, torch.no_grad():
            cache, tokens = None, ids
            for step in range(6):
                with handle.use(one if ids.shape[1] + step < change_at else two):
                    out = handle.model(
                        tokens if step == 0 else tokens[:, -1:],
                        past_key_values=cache,
                        use_cache=True,
                    )
                cache = out.past_key_values
                tokens = torch.cat([tokens, out.logits[:, -1:].argmax(-1)], 1)
        return tokens

    for slots in (1, 8):
        with attach(model, slots=slots) as handle, handle.use(one) as use:
            criteria = [Change(use, PROMPT + 3, two)]
            got = model.generate(ids, max_new_tokens=6, do_sample=False, stopping_criteria=criteria)
            assert torch.equal(got, by_hand(PROMPT + 3))
        assert not torch.equal(got, by_hand(99))
