"""The model of cost: fitted to times that it made itself, and what it predicts."""

from __future__ import annotations

import random

import pytest

from tables import cost_model


def test_a_line_through_points():
    points = {float(x): [2 + 0.5 * x + noise for noise in (-0.01, 0, 0.01)] for x in (1, 4, 9)}
    fit = cost_model.fit_line(points)
    assert fit["at_zero"] == pytest.approx(2)
    assert fit["slope"]["median"] == pytest.approx(0.5)
    assert fit["r2"] == pytest.approx(1)


def test_the_model_of_cost_finds_what_made_the_times():
    rng = random.Random(0)
    truth = 3.0, 0.02, 2e-5
    shapes = [(n, 4096) for n in (1, 4, 16, 64, 256, 1024)] + [(64, d) for d in (576, 1024, 2048)]
    times = {at: cost_model.cost(truth, *at, 2) * rng.uniform(0.99, 1.01) for at in shapes}
    found = cost_model.fit_cost(times, 2)
    assert found == pytest.approx(truth, rel=0.1)
    assert cost_model.cost(found, 64, 8192, 2) == pytest.approx(
        cost_model.cost(truth, 64, 8192, 2), rel=0.05
    )
    flat = cost_model.fit_cost(dict.fromkeys(shapes, 5.0), 2)
    assert min(flat) >= 0
    assert cost_model.cost(flat, 64, 8192, 2) == pytest.approx(5.0, rel=1e-6)


def test_shapes_have_the_parameters_that_their_names_say():
    sizes = {llama.name: llama.parameters / 1e9 for llama in cost_model.LLAMAS}
    assert sizes["Llama-2-7B"] == pytest.approx(6.74, rel=0.01)
    assert sizes["Llama-2-13B"] == pytest.approx(13.0, rel=0.01)
    assert sizes["Llama-2-70B"] == pytest.approx(69.0, rel=0.01)


def test_eight_ranks_pay_for_the_stream_what_one_pays():
    models = {"steered": (2.0, 0.1, 1e-5), "unsteered": (2.0, 0.05, 1e-5)}
    made = cost_model.predictions(models, 2, 1e10)
    pair = [one for one in made if (one["model"], one["batch"]) == ("Llama-2-70B", 64)]
    assert [one["ranks"] for one in pair] == [1, 8]
    assert pair[0]["added_us"] == pair[1]["added_us"] == pytest.approx(80 * 64 * 0.05)
    assert pair[1]["share"] == pytest.approx(8 * pair[0]["share"])
    assert pair[0]["weights_us"] == pytest.approx(1e6 * cost_model.LLAMAS[2].parameters * 2 / 1e10)
