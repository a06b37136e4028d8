"""A plan with only what it uses of its vectors is equal, and does the same to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import random_plans
import torch

from steerfast.io import plan_from_json, plan_to_json
from steerfast.plans.slim import slim
from steerfast.table.dose import doses
from steerfast.table.lowering import lower


@pytest.fixture
def drawn(monkeypatch):
    """drawn(seed): a random plan, or None; its vectors have norms and provenance."""
    plain = random_plans.vector

    def vector(seed, positions=None):
        norms = {layer: 1.0 + layer + seed for layer in range(random_plans.LAYERS)}
        return replace(plain(seed, positions), stream_norms=norms, provenance={"model": "m"})

    monkeypatch.setattr(random_plans, "vector", vector)

    def draw(seed):
        rng = random.Random(seed)
        return random_plans.plan(rng, random_plans.prompt(rng))

    return draw


def lowered(plan):
    """{(phase, site): (delta, finish, reads)} and what holds where, as plain data."""
    found = lower(plan)
    sites = {
        (number, site): (
            None if steering.delta is None else steering.delta.tolist(),
            steering.finish,
            [repr(read) for read in steering.reads],
        )
        for number, phase in enumerate(found.phases)
        for site, steering in phase.sites.items()
    }
    return found.phase_of, sites, doses(plan, found.phases)


@pytest.mark.parametrize("seed", range(60))
def test_random_plans(drawn, seed):
    plan = drawn(seed)
    if plan is None:
        return
    lean = slim(plan)
    bare = slim(plan, provenance=False)
    again = plan_from_json(plan_to_json(plan))
    assert plan == lean == bare == again
    assert lowered(lean) == lowered(bare) == lowered(again) == lowered(plan)
    for term, given in zip(lean.terms, plan.terms, strict=True):
        assert term.vector.layers == given.steered_layers
        assert dict(term.vector.provenance) == {"model": "m"}
        for layer in term.vector.layers:
            assert torch.equal(term.vector.at(layer), given.vector.at(layer))
    assert all(not one.provenance for one in bare.vectors)
    assert {one.name: len(one.layers) for one in slim(lean).vectors} == {
        one.name: len(one.layers) for one in lean.vectors
    }
