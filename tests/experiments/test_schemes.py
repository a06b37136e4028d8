"""The paper's schemes as plans: with its real vectors, deltas are what its formulas give."""

from __future__ import annotations

import pytest
import torch

from steerfast import SteeringVector, Term
from steerfast.experiments.schemes import combined, individual, simultaneous
from steerfast.plans.sites import site_index
from steerfast.table.lowering import lower

NAMES = ("agreeableness", "anti_immigration", "myopic", "sycophancy", "wealth_seeking")
# Coefficients chosen by the authors (negative, positive), and where each goes when all act at once.
CHOSEN = {
    10: {
        "agreeableness": (-3, 0.5),
        "anti_immigration": (-1, 3),
        "myopic": (-1, 10),
        "sycophancy": (-20, 1),
        "wealth_seeking": (-2, 1),
    },
    15: {
        "agreeableness": (-1, 0.5),
        "anti_immigration": (-0.5, 1),
        "myopic": (-1, 2),
        "sycophancy": (-5, 2),
        "wealth_seeking": (-2, 1),
    },
}
LAYERS = dict(
    zip(
        ("myopic", "wealth_seeking", "sycophancy", "agreeableness", "anti_immigration"),
        range(11, 16),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def stored(paper_data):
    """The paper's tensors, [32, 4096] float32 each."""
    folder = paper_data / "vectors"
    return {
        name: torch.load(folder / f"{name}_activations.pt", weights_only=True, map_location="cpu")
        for name in NAMES
    }


@pytest.fixture(scope="module")
def vectors(stored):
    return {name: SteeringVector(name, dict(enumerate(rows))) for name, rows in stored.items()}


def deltas(plan):
    """{layer: delta} of a plan of one phase."""
    (phase,) = lower(plan).phases
    sites = {site_index("resid_post", layer): layer for layer in range(32)}
    assert all(not site.reads for site in phase.sites.values())
    return {sites[index]: site.delta for index, site in phase.sites.items()}


def check(delta, expected):
    """Rounded once from float64: within half a unit in the last place of float32."""
    assert delta.dtype is torch.float32
    assert delta.shape == (4096,)
    wide = expected.to(torch.float32)
    ulp = (torch.nextafter(wide.abs(), torch.tensor(torch.inf)) - wide.abs()).double()
    assert ((delta.double() - expected).abs() <= 0.5000001 * ulp).all()


def test_individual(stored, vectors):
    for layer, table in CHOSEN.items():
        for name, coefficients in table.items():
            for c in coefficients:
                found = deltas(individual(vectors[name], layer, c))
                assert list(found) == [layer]
                check(found[layer], c * stored[name][layer].double())


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("layer", [10, 15])
def test_combined(stored, vectors, layer, reduce):
    for column in (0, 1):
        weighted = {name: pair[column] for name, pair in CHOSEN[layer].items()}
        for weights in (weighted, dict.fromkeys(NAMES, (-1, 1)[column])):
            found = deltas(combined(vectors, layer, weights, reduce=reduce))
            assert list(found) == [layer]
            every = torch.stack([weights[name] * stored[name][layer].double() for name in NAMES])
            check(found[layer], every.sum(0) if reduce == "sum" else every.mean(0))


@pytest.mark.parametrize("c", [-2.0, -0.45, 0.05, 1.05])
def test_simultaneous(stored, vectors, c):
    found = deltas(simultaneous(vectors, LAYERS, c))
    assert sorted(found) == [11, 12, 13, 14, 15]
    for name, layer in LAYERS.items():
        check(found[layer], c * stored[name][layer].double())


def vector(name, size=1.0):
    return SteeringVector(name, {0: torch.full((4,), size), 1: torch.ones(4)}, {0: 3.0, 1: 5.0})


def test_several_layers_share_one_coefficient_and_scales_pass_through():
    plan = individual(vector("v"), [0, 1], 0.5, scale="stream")
    assert plan.terms == (Term(vector("v"), 0.5, (0, 1), "stream"),)
    plan = simultaneous(
        {"a": vector("a"), "b": vector("b", 2.0)}, {"a": 0, "b": 1}, 0.5, scale="unit"
    )
    assert {term.scale for term in plan.terms} == {"unit"}


def test_refusals():
    pair = {"a": vector("a"), "b": vector("b")}
    with pytest.raises(ValueError, match=r"vectors for \['a', 'b'\] and coefficients for \['a'\]"):
        combined(pair, 0, {"a": 1.0})
    with pytest.raises(ValueError, match="unknown reduce 'max'"):
        combined(pair, 0, {"a": 1.0, "b": 1.0}, reduce="max")
    with pytest.raises(ValueError, match=r"layers for \['a', 'c'\]"):
        simultaneous(pair, {"a": 0, "c": 1}, 1.0)
    with pytest.raises(ValueError, match="give one layer per vector"):
        simultaneous({}, {}, 1.0)
