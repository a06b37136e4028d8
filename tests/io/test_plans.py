"""Plan files: what they carry, their names, and what is not written because it could not be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from steerfast import (
    Condition,
    First,
    Gate,
    Plan,
    Positions,
    SteeringVector,
    Term,
    Test,
    load_plan,
    save_plan,
    save_vector,
    steer,
)
from steerfast.io import plan_from_json, plan_to_json
from steerfast.plans.slim import slim
from steerfast.serving import openai_args
from steerfast.serving.settings import Settings

LAYERS = 30


def vector(name="joy", seed=0, hidden=64, layers=LAYERS):
    draw = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(hidden, generator=draw) for layer in range(layers)}
    norms = {layer: 1.0 + layer for layer in range(layers)}
    return SteeringVector(name, directions, norms, {"model": "m", "counts": {"pairs": 3}})


JOY, CALM = vector(), vector("calm", 1)
PLANS = {
    "raw": steer(JOY, 2.0, layers=[10]),
    "stream": steer(JOY, 0.2, layers=[10, 12], scale="stream"),
    "stream before a layer": steer(JOY, 0.2, layers=[10], scale="stream", site="resid_pre"),
    "equal": Plan((Term(JOY, 1.0, 10, "equal"), Term(CALM, -1.0, [10, 11], "equal"))),
    "reads": steer(JOY, layers=3, operator="map", read=CALM, gate=Gate("cosine", CALM)),
    "turns": steer(JOY, layers=5, operator="rotate_by", second=CALM, angle=0.3),
    "decides": steer(JOY, layers=20, condition=Condition(Test("cosine", CALM, layer=7))),
    "all": steer(JOY, 0.1),
}


def carried(text):
    """{name of a vector: its layers} of a plan's JSON."""
    found = {}

    def walk(value):
        if isinstance(value, dict):
            if "directions" in value:
                found.setdefault(value["name"], set()).update(map(int, value["directions"]))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(json.loads(text))
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_carries_the_layers_that_it_uses(name, tmp_path):
    plan = PLANS[name]
    text = plan_to_json(plan)
    wanted = {
        "equal": {"joy": {10}, "calm": {10, 11}},
        "reads": {"joy": {3}, "calm": {3}},
        "turns": {"joy": {5}, "calm": {5}},
        "decides": {"joy": {20}, "calm": {7}},
        "all": {"joy": set(range(LAYERS))},
    }
    steered = {"joy": set(plan.layers)}
    assert carried(text) == wanted.get(name, steered)
    assert openai_args(plan)["vllm_xargs"]["steerfast"] == text
    again = load_plan(save_plan(plan, tmp_path / "plan.json"))
    assert again == plan_from_json(text) == slim(plan) == plan
    assert again.terms[0].vector.provenance == JOY.provenance


def test_the_norms_that_say_a_plans_dose_are_carried():
    """Of whatever scale: the server's guard and the warning of ``use`` follow from them."""
    for site, measured in (("resid_post", 10), ("resid_mid", 10), ("resid_pre", 9)):
        (term,) = slim(steer(JOY, 2.0, layers=[10], site=site)).terms
        assert term.vector.stream_norms == {measured: 1.0 + measured}


def test_one_layer_of_a_real_vector_is_a_request_that_a_server_takes():
    plan = steer(vector(hidden=576), 0.2, layers=[10], scale="stream")
    text = openai_args(plan)["vllm_xargs"]["steerfast"]
    assert len(text) < 4 * 576 * 4 / 3 + 500
    assert len(text) < Settings().max_plan_bytes


# -- by name


def test_a_plan_goes_by_the_names_of_its_vectors(tmp_path):
    plan = Plan((Term(JOY, 2.0, 10), Term(JOY, 1.0, 11, operator="map", read=CALM)))
    path = save_plan(plan, tmp_path / "plan.json", inline=False)
    assert carried(path.read_text()) == {}
    known = {"joy": JOY, "calm": CALM}
    assert load_plan(path, known) == load_plan(path, vectors=known.__getitem__) == plan
    assert load_plan(path, known).terms[0].vector.layers == JOY.layers
    with pytest.raises(
        ValueError, match=r"plan\.json cannot be .* names vector 'calm'; known: joy"
    ):
        load_plan(path, {"joy": JOY})
    with pytest.raises(ValueError, match="another content of vector 'calm'"):
        load_plan(path, {**known, "calm": vector("calm", 2)})
    with pytest.raises(FileNotFoundError, match="no vector file"):
        load_plan(path)
    for each in known.values():
        save_vector(each, tmp_path / f"{each.name}.safetensors")
    assert load_plan(path) == plan


def test_vectors_that_are_given_stand_before_files(tmp_path):
    save_vector(CALM, tmp_path / "joy.safetensors")
    path = tmp_path / "plan.json"
    path.write_text('{"terms": [{"vector": "joy", "layers": [3]}]}')
    assert load_plan(path) == steer(CALM, layers=3)
    assert load_plan(path, {"joy": JOY}) == steer(JOY, layers=3)


def test_one_name_for_two_vectors_is_refused_by_name(tmp_path):
    plan = Plan((Term(JOY, 2.0, 10), Term(replace(CALM, name="joy"), 2.0, 10)))
    with pytest.raises(ValueError, match="two vectors with the name 'joy'"):
        save_plan(plan, tmp_path / "plan.json", inline=False)
    assert list(tmp_path.iterdir()) == []
    assert load_plan(save_plan(plan, tmp_path / "plan.json")) == plan


def test_what_is_no_plan_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_plan(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no plan file at .*absent\.json"):
        load_plan(tmp_path / "absent.json")


# -- what is not written


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (steer(JOY, layers=1, select=Positions(0, 2**63)), "which 64 bits do not"),
        (steer(JOY, layers=1, select=Positions(-(2**70))), "which 64 bits do not"),
        (steer(JOY, layers=1, select=First(2**63)), "which 64 bits do not"),
        (steer(replace(JOY, provenance={"loss": float("nan")}), layers=1), r"\['loss'\] is nan"),
        (steer(SteeringVector("far", {10**9: torch.ones(4)})), "layers are written"),
    ],
    ids=["beyond", "far before", "first", "nan", "layer"],
)
def test_a_plan_that_would_not_load_is_not_saved(plan, message, tmp_path):
    path = save_plan(PLANS["raw"], tmp_path / "plan.json")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        save_plan(plan, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["plan.yaml", "plan.safetensors", "v1.5"])
def test_a_plans_name_says_what_it_is(name, tmp_path):
    with pytest.raises(ValueError, match=r"written as \.json"):
        save_plan(PLANS["raw"], tmp_path / name)
    assert load_plan(save_plan(PLANS["raw"], tmp_path / f"{name}.json")) == PLANS["raw"]
    assert load_plan(save_plan(PLANS["raw"], tmp_path / "bare")) == PLANS["raw"]


def test_a_link_stays_one_and_a_device_what_it_is(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "plan.json"
    link.symlink_to(tmp_path / "real" / "plan.json")
    save_plan(PLANS["raw"], link)
    assert link.is_symlink()
    assert load_plan(tmp_path / "real" / "plan.json") == PLANS["raw"]
    (tmp_path / "folder.json").mkdir()
    for taken in (tmp_path / "folder.json", "/dev/null"):
        with pytest.raises(ValueError, match="is no file"):
            save_plan(PLANS["raw"], taken)
