"""The paper's own Llama-2-7B-chat vectors, at its layers and coefficients up to 300, through every op."""

from __future__ import annotations

import pytest
import torch

from steerfast import Gate, Plan, SteeringVector, Term, ops, steer, testing
from steerfast.ops import reference
from steerfast.ops.reference import Steering
from steerfast.table.table import Table

BEHAVIOURS = ("agreeableness", "anti_immigration", "myopic", "sycophancy", "wealth_seeking")
SIMULTANEOUS = {
    "myopic": 11,
    "wealth_seeking": 12,
    "sycophancy": 13,
    "agreeableness": 14,
    "anti_immigration": 15,
}


@pytest.fixture(scope="session")
def vectors(paper_data):
    found = {}
    for name in BEHAVIOURS:
        stack = torch.load(
            paper_data / "vectors" / f"{name}_activations.pt", weights_only=True, map_location="cpu"
        )
        found[name] = SteeringVector(
            name, dict(enumerate(stack)), provenance={"model": "Llama-2-7b"}
        )
    return found


def cases(plans, layer, dtype):
    """Rows under every plan and gain, on a stream with Llama-2's outlier channels."""
    table = Table(32, 4096, slots=len(plans))
    slots = [table.acquire(plan).slots[0] for plan in plans]
    generator = torch.Generator().manual_seed(0)
    rows = len(slots) + 1
    residual = torch.randn(rows, 4096, generator=generator)
    residual[:, [1415, 2533]] *= 300.0
    weight = 0.3 + 0.1 * torch.randn(4096, generator=generator)
    steering = Steering(
        torch.tensor([*slots, -1], dtype=torch.int32),
        torch.ones(rows),
        table.records[2 + 2 * layer],
        table.reads,
        table.bank,
    )
    x = torch.randn(rows, 4096, generator=generator)
    return testing.Case("paper", x.to(dtype), residual.to(dtype), weight.to(dtype), 1e-5, steering)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("layer", [0, 10, 15, 31])
@pytest.mark.parametrize("backend", [ops, reference], ids=["ops", "reference"])
def test_individual(vectors, backend, layer, dtype):
    coefficients = (-300, -20, -1, -0.5, 0.5, 3, 10, 60, 300)
    plans = [
        steer(vectors[name], c, layers=[layer], finish=finish)
        for name in BEHAVIOURS
        for c in coefficients
        for finish in ("none", "preserve", "shrink")
    ]
    case = cases(plans, layer, dtype)
    assert case.active.sum() == len(plans)
    case.check(
        *backend.steer_add_rms_norm(case.x, case.residual, case.weight, case.eps, case.steering)
    )


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_combined_and_simultaneous(vectors, dtype):
    combined = [Plan(tuple(Term(vectors[n], c, (15,)) for n in BEHAVIOURS)) for c in (-1, 0.2, 1)]
    together = [
        Plan(tuple(Term(vectors[name], c, (layer,)) for name, layer in SIMULTANEOUS.items()))
        for c in (-0.45, 0.5, 1.05)
    ]
    case = cases(combined + together, 15, dtype)
    case.check(*ops.steer_add_rms_norm(case.x, case.residual, case.weight, case.eps, case.steering))
    total = sum(vectors[name].at(15).double() for name in BEHAVIOURS)
    wanted = case.h[2].double() + total
    bound = testing.ulp(wanted, dtype) + testing.RELATIVE * (case.h[2].double().abs() + total.abs())
    stream = ops.steer_add(case.x, case.residual, case.steering)
    assert ((stream[2].double() - wanted).abs() <= bound).all()


def reading_plans(vectors, layer):
    """Every operator on the paper's own directions, which have outlier channels and lean on each other."""
    first, second = vectors["sycophancy"], vectors["myopic"]
    at = {"layers": (layer,)}
    gate = Gate("cosine", vectors["agreeableness"], threshold=0.01)
    span = tuple(Term(vectors[name], operator="ablate", **at) for name in BEHAVIOURS)
    yield Plan(span)
    yield Plan(span, "preserve")
    for fields in (
        {"operator": "add_relative", "coefficient": 0.2},
        {"operator": "signed", "coefficient": 3.0},
        {"operator": "clamp", "target": 5.0},
        {"operator": "floor", "target": 1.0},
        {"operator": "ceiling", "target": -1.0},
        {"operator": "reflect"},
        {"operator": "map", "read": second, "coefficient": 0.1},
        {"operator": "feature_clamp", "read": second, "target": 2.0, "threshold": 0.5},
        {"operator": "rotate_to", "second": second, "angle": 1.0},
        {"operator": "rotate_by", "second": second, "angle": -0.5},
        {"operator": "slerp", "coefficient": 0.3},
        {"coefficient": 20.0, "gate": gate},
    ):
        yield Plan((Term(first, **fields, **at),))
    yield Plan(
        (*span, Term(second, 60.0, **at), Term(first, 0.5, operator="slerp", **at)), "shrink"
    )


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("layer", [0, 15, 31])
@pytest.mark.parametrize("backend", [ops, reference], ids=["ops", "reference"])
def test_reading_operators(vectors, backend, layer, dtype):
    case = cases(list(reading_plans(vectors, layer)), layer, dtype)
    case.check(*backend.steer_add_rms_norm(*case.arguments))


def test_norms_are_those_published(vectors):
    """paper table of L2 norms, layer 15: the files are what they are said to be."""
    published = {
        "agreeableness": 6.11,
        "anti_immigration": 6.30,
        "myopic": 9.31,
        "sycophancy": 1.28,
        "wealth_seeking": 7.28,
    }
    for name, norm in published.items():
        assert float(vectors[name].at(15).norm()) == pytest.approx(norm, abs=0.006)
