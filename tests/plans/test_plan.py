"""Term and Plan: validation, order, digest; and the JSON that carries them."""

from __future__ import annotations

import json

import pytest
import torch

from steerfast import Gate, Plan, SteeringVector, Term, load_plan, save_plan, save_vector, steer
from steerfast.io import plan_from_json, plan_to_json


def vector(name="v", seed=0, layers=(0, 1, 2), norms=True):
    generator = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(8, generator=generator) for layer in layers}
    return SteeringVector(name, directions, dict.fromkeys(layers, 3.0) if norms else {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "big"}, "unknown scale 'big'; known: raw, unit, equal, stream"),
        ({"site": "mlp"}, "unknown site 'mlp'"),
        ({"select": "last"}, "unknown selector 'last'"),
        ({"operator": "erase"}, "unknown operator 'erase'; known: add, add_relative"),
        ({"coefficient": float("nan")}, "must be finite"),
        ({"coefficient": float("inf")}, "must be finite"),
        ({"layers": (9,)}, r"has no layer 9; it has 0\.\.2"),
        ({"layers": ()}, "names no layer"),
    ],
)
def test_terms_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        Term(vector(), **changes)


def test_types_are_checked():
    with pytest.raises(TypeError, match="SteeringVector"):
        Term(torch.ones(8))
    with pytest.raises(TypeError, match="a number"):
        Term(vector(), "2")
    with pytest.raises(TypeError, match=r"each of the layers of 'v' is an integer, got 1\.5"):
        Term(vector(), 1.0, 1.5)
    with pytest.raises(TypeError, match="each of the layers of 'v' is an integer, got True"):
        Term(vector(), 1.0, [True])
    with pytest.raises(TypeError, match="made of Terms"):
        Plan((vector(),))


@pytest.mark.parametrize("scale", ["unit", "equal", "stream"])
def test_a_zero_direction_cannot_be_normalised(scale):
    zero = SteeringVector("z", {0: torch.zeros(8), 1: torch.ones(8)}, {0: 1.0, 1: 1.0})
    with pytest.raises(ValueError, match="zero at layer 0"):
        Term(zero, scale=scale)
    Term(zero, layers=(1,), scale=scale)
    Term(zero, scale="raw")


def test_stream_scale_needs_norms():
    with pytest.raises(ValueError, match=r"needs the stream norm of layer 1.*with_stream_norms"):
        Term(vector(norms=False), layers=(1,), scale="stream")


def test_plans_refuse():
    with pytest.raises(ValueError, match="at least one term"):
        Plan(())
    with pytest.raises(ValueError, match="unknown finish"):
        Plan((Term(vector()),), "stretch")
    other = SteeringVector("w", {0: torch.ones(9)})
    with pytest.raises(ValueError, match=r"hidden sizes \[8, 9\]"):
        Plan((Term(vector()), Term(other)))


def test_a_plan_has_no_order_and_names_do_not_count():
    first, second = Term(vector(seed=1), 2.0), Term(vector(seed=2), -1)
    assert Plan((first, second)) == Plan((second, first))
    assert hash(Plan((first, second))) == hash(Plan((second, first)))
    assert Plan((Term(vector("a"), 3),)).digest == Plan((Term(vector("b"), 3.0, (0, 1, 2)),)).digest


def test_whatever_changes_the_effect_changes_the_digest():
    base = steer(vector(), 1.0, layers=[1])
    others = [
        steer(vector(), 1.5, layers=[1]),
        steer(vector(), 1.0, layers=[2]),
        steer(vector(seed=3), 1.0, layers=[1]),
        steer(vector(), 1.0, layers=[1], scale="unit"),
        steer(vector(), 1.0, layers=[1], site="resid_mid"),
        steer(vector(), 1.0, layers=[1], select="generated"),
        steer(vector(), 1.0, layers=[1], finish="preserve"),
    ]
    assert len({base.digest, *(plan.digest for plan in others)}) == 1 + len(others)
    louder = SteeringVector("v", dict(vector().directions), dict.fromkeys(range(3), 4.0))
    assert steer(vector(), scale="stream").digest != steer(louder, scale="stream").digest


def plans():
    yield steer(vector(), -0.3, scale="stream", select="generated", finish="shrink")
    yield Plan(
        (Term(vector(seed=1), 1e-3, (0, 2)), Term(vector("w", 2), 7, site="resid_mid")), "preserve"
    )
    other, gate = vector("w", 2), Gate("cosine", vector("key", 3), threshold=0.25)
    yield Plan(
        (
            Term(vector(), operator="clamp", target=-1.5, gate=gate),
            Term(vector(), 0.5, operator="ablate", gate=Gate("sigmoid", other, bias=1.0)),
            Term(vector(), operator="rotate_by", second=other, angle=0.3, select="prompt"),
            Term(vector(), 2.0, operator="map", read=other, bias=-1.0),
            Term(vector(), operator="feature_clamp", read=other, target=3.0, threshold=0.5),
        )
    )


@pytest.mark.parametrize("plan", list(plans()))
def test_json_round_trip(plan, tmp_path):
    again = plan_from_json(plan_to_json(plan))
    assert again == plan
    used = [term.vector.select(term.steered_layers).directions for term in plan.terms]
    for term, directions in zip(again.terms, used, strict=True):
        assert term.vector.layers == tuple(directions)
        assert all(torch.equal(term.vector.at(layer), directions[layer]) for layer in directions)
    assert load_plan(save_plan(plan, tmp_path / "plan.json")) == plan


def test_json_by_name_is_guarded_by_the_digest(tmp_path):
    plan = steer(vector("joy"), 2.0)
    text = plan_to_json(plan, inline=False)
    assert plan_from_json(text, {"joy": vector("joy")}) == plan
    with pytest.raises(ValueError, match="another content of vector 'joy'"):
        plan_from_json(text, {"joy": vector("joy", seed=5)})
    with pytest.raises(ValueError, match="known: anger"):
        plan_from_json(text, {"anger": vector("anger")})
    with pytest.raises(ValueError, match="no vectors were given"):
        plan_from_json(text)
    gated = steer(
        vector("joy"), operator="map", read=vector("w", 1), gate=Gate("hard", vector("k", 2))
    )
    text = plan_to_json(gated, inline=False)
    known = {"joy": vector("joy"), "w": vector("w", 1), "k": vector("k", 2)}
    assert plan_from_json(text, known) == gated
    for name in ("w", "k"):
        with pytest.raises(ValueError, match=f"another content of vector '{name}'"):
            plan_from_json(text, known | {name: vector(name, seed=9)})
    save_vector(vector("joy"), tmp_path / "joy.safetensors")
    data = {"terms": [{"vector": "joy.safetensors", "coefficient": 2}]}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert load_plan(tmp_path / "plan.json") == plan


VECTOR = '{"name": "v", "directions": {"0": "AACAPw=="}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not: Expecting property name"),
        ("[]", "JSON object"),
        ('{"schema": "other/1", "terms": []}', "schema 'steerfast.plan/1'"),
        ('{"terms": [], "finnish": "none"}', r"unknown keys \['finnish'\]"),
        ('{"terms": {}}', "'terms' of a plan is a list, got {}"),
        ('{"terms": []}', "at least one term"),
        ('{"terms": [{"coefficient": 1}]}', "at least 'vector'"),
        ('{"terms": [{"vector": 3}]}', "a name or an object"),
        ('{"terms": [{"vector": {"name": "v", "directions": {"0": "@@"}}}]}', "cannot be read"),
        (
            '{"terms": [{"vector": {"name": "v", "directions": {"0": "AACAPw=="}}, "coeficient": 2}]}',
            "coeficient",
        ),
        (f'{{"terms": [{{"vector": {VECTOR}, "gate": "hard"}}]}}', "a gate is an object"),
        (
            f'{{"terms": [{{"vector": {VECTOR}, "gate": {{"kind": "hard", "key": {VECTOR}, "bia": 1}}}}]}}',
            r"a gate has unknown keys \['bia'\]",
        ),
        (f'{{"terms": [{{"vector": {VECTOR}, "operator": "clamp"}}]}}', "needs target"),
        (f'{{"terms": [{{"vector": {VECTOR}, "target": 1}}]}}', "'add' takes no target"),
    ],
)
def test_json_refusals(text, message):
    with pytest.raises(ValueError, match=message):
        plan_from_json(text)


def test_inline_json_is_little_endian_float32():
    text = '{"terms": [{"vector": {"name": "v", "directions": {"5": "AACAPwAAAMA="}}, "coefficient": 2}]}'
    (term,) = plan_from_json(text).terms
    assert term.steered_layers == (5,)
    assert torch.equal(term.vector.at(5), torch.tensor([1.0, -2.0]))


def test_selectors_schedules_and_conditions_travel_as_json():
    from steerfast import AfterSequence, Condition, First, Positions, Schedule, Test

    generator = torch.Generator().manual_seed(4)
    flat = SteeringVector("flat", {2: torch.randn(8, generator=generator)})
    written = SteeringVector("written", {2: torch.randn(3, 8, generator=generator)})
    tests = (
        Test("cosine", flat, 2, threshold=0.1, over="mean", below=True),
        Test("probe", flat, 2, bias=-0.5, site="resid_mid"),
    )
    selects = ["after_prompt", Positions(-4, "prompt_end"), Positions(2), AfterSequence((3, 4))]
    plan = Plan(
        (
            *(Term(flat, 1.5, select=select) for select in selects),
            Term(written, 0.5, select=First(2)),
        ),
        schedule=Schedule(((-2, 0.5), (3, 0.1))),
        condition=Condition(tests, require="any"),
    )
    again = plan_from_json(plan_to_json(plan))
    assert again == plan
    assert {str(term.select) for term in again.terms} == {str(term.select) for term in plan.terms}
    assert again.schedule == plan.schedule
    assert again.condition.require == "any"
    by_name = plan_from_json(plan_to_json(plan, inline=False), {"flat": flat, "written": written})
    assert by_name == plan


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("select", {"positions": [3, 1]}, "selects nothing"),
        ("select", {"positions": [1, 2, 3]}, "a selector is a name"),
        ("select", {"positions": ["x"]}, "cannot be read"),
        ("select", {"first": 0}, "from 1"),
        ("select", {"after_sequence": []}, "one or more token ids"),
        ("select", {"first": 1, "positions": [1]}, "a selector is a name"),
        ("select", 3, "a selector is a name"),
        ("select", "tail", "unknown selector"),
        ("schedule", [[0, 1], [0, 2]], "ascend"),
        ("schedule", [[0.5, 1]], r"offset t - P is an integer, got 0\.5"),
        ("schedule", [[0, "1"]], "cannot be read"),
        ("schedule", {"0": 1}, "a schedule is a list"),
        ("schedule", [], "1 to 256 points"),
        ("condition", {"tests": []}, "1 to 4 tests"),
        ("condition", [], "a condition is an object"),
        ("condition", {"tests": [{"kind": "cosine"}]}, "'kind', 'key' and 'layer'"),
        ("condition", {"tests": [], "when": 1}, "when"),
        ("condition", {"tests": [{"kind": "dot", "key": "v", "layer": 0}]}, "kind of test"),
        (
            "condition",
            {"tests": [{"kind": "cosine", "key": "v", "layer": "0"}]},
            "layer of a test is an integer, got '0'",
        ),
        ("condition", {"tests": [{"kind": "cosine", "key": "w", "layer": 0}]}, "names vector 'w'"),
    ],
)
def test_json_that_is_no_plan_names_the_field(field, value, message):
    data = {"terms": [{"vector": "v", "layers": [0]}]}
    (data["terms"][0] if field == "select" else data)[field] = value
    vectors = {"v": SteeringVector("v", {0: torch.ones(4)})}
    with pytest.raises(ValueError, match=message):
        plan_from_json(json.dumps(data), vectors)
