"""A plan that could not run is refused by the reader, with the reason; doses are the closed forms; settings and clients say what they mean."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from types import MappingProxyType

import numpy as np
import pytest
import torch

import steerfast as sf
from steerfast.io.plans import plan_from_json, plan_to_json
from steerfast.io.vectors import vector_to_json
from steerfast.itinerary import itinerary
from steerfast.lowering import lower
from steerfast.router import BASE, GAIN, make_router
from steerfast.serving.catalogue import Catalogue
from steerfast.serving.client import openai_args
from steerfast.serving.dose import dose
from steerfast.serving.reader import PlanReader, read_vector
from steerfast.serving.settings import Settings
from steerfast.serving.vllm.device_route import DeviceRoute
from steerfast.serving.wire import FIELD, to_wire
from steerfast.table import Table

D, LAYERS, PROMPT = 8, 4, [5, 7, 8, 6]


def vector(name, seed=0, size=D, layers=LAYERS):
    rng = torch.Generator().manual_seed(seed)
    norms = dict.fromkeys(range(layers), 2.0)
    return sf.SteeringVector(
        name, {at: torch.randn(size, generator=rng) for at in range(layers)}, norms
    )


JOY, CALM = vector("joy"), vector("calm", 1)
FAINT = sf.SteeringVector("faint", {1: torch.full((D,), 1e-30)})
INLINE = vector_to_json(JOY)
NAN, INFINITE = math.nan, '{"terms": [{"vector": "joy", "coefficient": 1e400}]}'
TEST = {"kind": "cosine", "key": "calm", "layer": 1}


def reader(conditions=True, **settings):
    catalogue = Catalogue()
    for one in (JOY, CALM, FAINT, vector("wide", size=16), vector("tall", layers=9)):
        catalogue.put(one.name, one)
    catalogue.put("polite", sf.steer(JOY, 2.0, layers=[1]))
    return PlanReader(Settings(**settings), LAYERS, D, conditions=conditions, catalogue=catalogue)


def plan(*more, top=None, **term):
    return {"terms": [{"vector": "joy", "layers": [1], **term}, *more], **(top or {})}


def tested(**fields):
    return plan(top={"condition": {"tests": [{**TEST, **fields}]}})


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"terms": [value]}
    return value


# By a part of the reason.
REFUSED = {
    "a plan is JSON text": [5, True, 0.5, b"{}", [plan()], plan],
    "a name is 1 to 64 letters": ["", "../polite", "/etc/passwd", "a/b", ".", "[]", "\ud800"],
    "a name is": [plan(vector="../joy"), plan(operator="map", read="/joy"), tested(key="a/b")],
    "there is no plan 'joy'": ["joy", " joy "],
    "there is no vector 'no'": [
        plan(vector="no"),
        plan(operator="slerp", second="no"),
        tested(key="no"),
    ],
    "this text is not: ": ["{", '{"terms": [}', "{'terms': []}"],
    "too large|must be finite": [plan(target=10**400), plan(coefficient=math.nan), INFINITE],
    "Exceeds the limit": [INFINITE.replace("1e400", 5000 * "9"), {"terms": 10**5000}],
    "holds what JSON cannot": [{"terms": {1, 2}}, {**plan(), (1, 2): 3}, nested(20_000)],
    "nested too deeply": ['{"terms": ' + 20_000 * "["],
    "unknown keys .'1'": [{**plan(), 1: 2}, plan(**{"1": 2}), tested(**{"1": 2})],
    "a list 'terms'": [{}, {"terms": {}}, {"terms": None}],
    "at least": [{"terms": []}, {"terms": [{}]}, {"terms": [[]]}],
    "of schema": [plan(top={"schema": "steerfast.plan/9"})],
    "unknown finish": [plan(top={"finish": []})],
    "a schedule": [
        plan(top={"schedule": value}) for value in ([], [[0]], [[0.5, 1]], [[0, NAN]], 5)
    ],
    "'kind', 'key' and 'layer'": [plan(top={"condition": {"tests": [{"kind": "cosine"}]}})],
    "'tests'": [plan(top={"condition": value}) for value in ({}, [], "x", {"tests": {}})],
    "has no layer 99": [plan(layers=[99]), tested(layer=99)],
    "model has layers 0..3": [plan(vector="tall", layers=[4]), tested(key="tall", layer=8)],
    "hidden size 16, but this model": [plan(vector="wide")],
    "a number": [plan(coefficient="2"), plan(coefficient=True), plan(coefficient=None)],
    "float32": [plan(coefficient=1e39), plan(operator="clamp", target=1e39)],
    "integers": [plan(layers=value) for value in ("1", [1.0], [True], [None])],
    "a name or an object": [plan(vector=5), plan(vector=None), tested(key=[])],
    "digest": [plan(vector_digest="0"), plan(vector_digest=5), tested(key_digest={})],
    "unknown": [plan(operator="push"), plan(select="some"), plan(site=[]), tested(kind=None)],
    "needs": [plan(operator="clamp"), plan(operator="map"), plan(operator="rotate_to", angle=1)],
    "a gate is": [plan(gate=value) for value in (None, "hard", {"kind": "hard"}, {"key": "joy"})],
    "selector|from 1|integer": [
        plan(select=value) for value in ({}, {"first": 0}, {"positions": [1.5]})
    ],
}
OVER = [
    ({"max_terms": 1}, plan({"vector": "calm"}), "takes up to 1"),
    ({"max_plan_bytes": 61}, plan(vector="no"), "61 \\(STEERFAST_MAX_PLAN_BYTES"),
    ({"max_plan_bytes": 20}, 11 * "é", "has 22 bytes"),
    ({"slots": 1}, plan({"vector": "calm", "select": "generated"}), "needs 2 slots.*_SLOTS"),
    ({"rows": 1}, plan(layers=[0, 1]), "needs 2 rows.*_ROWS"),
    ({"programs": 0}, plan(operator="ablate"), "needs 1 programs.*_PROGRAMS"),
    ({"dose_refuse": 2.9}, plan(scale="stream", coefficient=-3), "resid_post.1.*_DOSE_REFUSE"),
    ({"conditions": False}, plan(top={"condition": {"tests": [TEST]}}), "condition: "),
    ({}, plan(vector=INLINE), "vector: .*STEERFAST_INLINE"),
    ({}, plan(operator="map", read=INLINE), "read: .*STEERFAST_INLINE"),
    ({}, plan(operator="rotate_to", second=INLINE, angle=1), "second: .*STEERFAST_INLINE"),
    ({}, plan(gate={"kind": "hard", "key": INLINE}), "key: .*STEERFAST_INLINE"),
    ({}, plan(top={"condition": {"tests": [{**TEST, "key": INLINE}]}}), "key: .*STEERFAST_INLINE"),
]
ENOUGH = {"max_terms": 2, "max_plan_bytes": 62, "slots": 2, "rows": 2, "programs": 1}
ENOUGH |= {"dose_refuse": 3.1, "inline": True, "conditions": True}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(reason):
    for value in REFUSED[reason]:
        with pytest.raises(ValueError, match=reason):
            reader(inline=True).read(value)


@pytest.mark.parametrize(("limits", "value", "reason"), OVER, ids=lambda value: str(value)[:40])
def test_limits_refuse_and_what_just_fits_is_read(limits, value, reason):
    with pytest.raises(ValueError, match=reason):
        reader(**limits).read(value)
    if isinstance(value, dict) and value["terms"][0]["vector"] != "no":
        wider = {name: ENOUGH[name] for name in (limits or {"inline": True})}
        assert reader(**wider).read(value)


@pytest.mark.parametrize(
    "value",
    [
        *(plan(top={"schedule": [[offset, 1.0]]}) for offset in (10**30, -(2**70), 2**63 - 2)),
        *(plan(top={"schedule": [[0, gain]]}) for gain in (1e39, -1e300)),
        plan(operator="map", read="joy", coefficient=1e10, bias=1e300),
        plan(operator="reflect", coefficient=1e308),
        plan(gate={"kind": "hard", "key": "faint", "bias": 1e300}),
    ],
    ids=str,
)
def test_a_number_that_no_worker_could_take_is_refused(value):
    with pytest.raises(ValueError, match=r"schedule|float32|finite"):
        reader().read(value)


def test_every_form_of_a_plan_is_read_and_names_mean_what_they_mean_now():
    one, registered = reader(), sf.steer(JOY, 2.0, layers=[1])
    for value in ("polite", " polite\n", plan(coefficient=2), json.dumps(plan(coefficient=2))):
        assert one.read(value).plan.digest == registered.digest
    assert one.read(registered).plan is registered
    assert one.read(None) is None
    assert one.read(plan(coefficient=0)) is one.read(plan(coefficient=0)) is None
    assert one.read(plan()) is one.read(plan())  # remembered
    before = one.read(plan()).plan.digest
    one.catalogue.put("joy", CALM)
    assert one.read(plan()).plan == sf.steer(CALM, layers=[1]) != before


FULL = sf.Plan(
    (
        sf.Term(JOY, 0.5, (1, 2), scale="stream", gate=sf.Gate("hard", CALM, bias=0.5)),
        sf.Term(CALM, 0.1, (0,), operator="map", read=JOY, bias=0.1, select=sf.Positions(-2, 9)),
        sf.Term(JOY, layers=(3,), operator="rotate_to", second=CALM, angle=0.5),
        sf.Term(CALM, layers=(3,), operator="clamp", target=1.0, select=sf.AfterSequence((7, 8))),
    ),
    finish="preserve",
    schedule=sf.Schedule(((-2, 0.5), (3, 1.5))),
    condition=sf.Condition(sf.Test("probe", CALM, layer=0, bias=0.25)),
)
VALUES = [None, True, False, 0, -1, 3, 2**63, -(10**30), 10**400, 0.5, -0.0, 1e-320, 1e39, -1e308]
VALUES += [
    math.nan,
    math.inf,
    "",
    "joy",
    "nobody",
    "../joy",
    "all",
    "generated",
    "ablate",
    "\ud800",
]
VALUES += [[], [1], [[0, 1.0]], [[]], {}, {"first": 2}, {"positions": [1, "prompt_end"]}, INLINE]


def places(value):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def cases(seed, count=50):
    """Valid plans with one to three values dropped, replaced, cut short, or copied elsewhere."""
    chance = random.Random(seed)
    bases = [json.loads(plan_to_json(FULL, inline=inline)) for inline in (True, False)] + [plan()]
    for _ in range(count):
        data = copy.deepcopy(chance.choice(bases))
        for _ in range(chance.randrange(1, 4)):
            (where, key), (other, place) = (
                chance.choice([*places(data)] or [([0], 0)]) for _ in "12"
            )
            kind = chance.choice(["drop", "replace", "replace", "copy", "double", "cut"])
            if kind == "drop":
                del where[key]
            elif kind == "replace":
                where[key] = copy.deepcopy(chance.choice(VALUES))
            elif kind == "copy":
                other[place] = copy.deepcopy(where[key])
            elif kind == "double" and isinstance(where, list):
                where.insert(key, copy.deepcopy(where[key]))
            elif isinstance(where[key], str):
                where[key] = where[key][: len(where[key]) // 2]
        yield data if chance.random() < 0.5 else json.dumps(data)


def accepted(seed):
    one = reader(inline=True)
    for value in cases(seed):
        try:
            prepared = one.read(value)
        except ValueError:
            continue
        yield prepared


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_changed_at_random_is_read_or_refused(seed):
    """Anything but a ValueError comes out of ``accepted``."""
    assert 0 < len(list(accepted(seed))) < 50


@pytest.mark.parametrize("seed", range(8))
def test_what_was_accepted_runs_in_a_worker(seed):
    """In a table of just the size that it was said to need, with finite numbers only."""
    for prepared in filter(None, accepted(seed)):
        try:
            to_wire(prepared, len(PROMPT), PROMPT)
        except ValueError:  # a sequence that this prompt does not have
            continue
        arrived, cost = plan_from_json(prepared.text), prepared.cost
        assert arrived.digest == prepared.plan.digest
        table = Table(LAYERS, D, slots=cost.slots, bank_rows=cost.rows, programs=cost.programs)
        one = itinerary(table.acquire(arrived), len(PROMPT), PROMPT)
        router, rows = make_router(1), np.zeros((5, 64), np.int32)
        router.set(0, *map(list, one))
        router.fill([0], [0], [40], rows)
        DeviceRoute(seats=1).set(0, one)
        assert np.isfinite(rows[[GAIN, BASE]].view(np.float32)).all()
        assert table.bank.isfinite().all()
        assert table.reads[..., 6:].contiguous().view(torch.float32).isfinite().all()


A, B = (
    sf.SteeringVector(name, {0: torch.tensor(v), 1: torch.tensor(v)}, {0: 2.0, 1: 4.0})
    for name, v in (("a", [3.0, 4.0, 0.0]), ("b", [0.0, 0.0, 5.0]))
)
BARE = sf.SteeringVector("bare", {0: torch.ones(3)})
ROWS = sf.SteeringVector("rows", {0: 8 * torch.eye(3)}, {0: 2.0})
AT0 = "resid_post[0]"


def terms(*each, **top):
    return sf.Plan(tuple(sf.Term(v, c, (0,), **fields) for v, c, fields in each), **top)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (sf.steer(A, 2.0), (5.0, AT0)),
        (sf.steer(A, 2.0, layers=[1]), (2.5, "resid_post[1]")),
        (sf.steer(A, 2.0, layers=[1], site="resid_mid"), (2.5, "resid_mid[1]")),
        (sf.steer(A, 2.0, layers=[1], site="resid_pre"), (5.0, AT0)),
        (sf.steer(A, 2.0, layers=[0], site="resid_pre"), (0.0, "")),
        (sf.steer(BARE, 2.0), (0.0, "")),
        (sf.steer(A, -0.3, scale="stream"), (0.3, AT0)),
        (sf.steer(A, 2.0, schedule=sf.Schedule(((0, 0.5), (3, -4.0)))), (20.0, AT0)),
        (sf.steer(A, -0.5, operator="add_relative", layers=[0]), (0.5, AT0)),
        (sf.steer(A, 3.0, operator="signed"), (1.5, AT0)),
        (sf.steer(A, operator="clamp", target=-3.0), (1.5, AT0)),
        (sf.steer(A, operator="floor", target=3.0), (1.5, AT0)),
        (sf.steer(A, 1.0, operator="ablate", layers=[0]), (0.0, AT0)),
        (sf.steer(ROWS, 1.0, select=sf.First(2)), (4.0, AT0)),
        (terms((A, 2.0, {}), (B, 2.0, {})), (math.sqrt(200) / 2, AT0)),
        (terms((A, 2.0, {}), (A, -1.0, {})), (2.5, AT0)),
        (terms((A, 2.0, {}), (B, 0.5, {"operator": "add_relative"})), (5.5, AT0)),
        (terms((A, 2.0, {"select": "prompt"}), (A, 3.0, {"select": "generated"})), (7.5, AT0)),
        (terms((A, 1.0, {}), (BARE, 1.0, {})), (math.sqrt(42) / 2, AT0)),
    ],
)
def test_the_dose_is_the_closed_form(given, wanted):
    assert dose(given, lower(given)) == (pytest.approx(wanted[0]), wanted[1])


@pytest.mark.parametrize(
    ("given", "least"),
    [
        (sf.steer(A, 2.0, gate=sf.Gate("hard", B, bias=1e9)), 5.0),
        (sf.steer(A, 2.0, operator="map", read=B, bias=1.0), 5.0),
        (sf.steer(A, operator="feature_clamp", read=B, target=2.0, threshold=1e9), 5.0),
    ],
    ids=["gate", "map", "feature_clamp"],
)
def test_no_operator_adds_more_than_the_dose_says(given, least):
    """Each adds 2 A wherever <h, b> is 0, which is 5 times the stream."""
    assert dose(given, lower(given))[0] >= least


def test_a_dose_beyond_the_first_limit_is_logged(caplog):
    one = reader(dose_warn=1.0)
    with caplog.at_level(logging.WARNING, "steerfast"):
        one.read(plan(scale="stream", coefficient=1.0))
        assert not caplog.records
        one.read(plan(scale="stream", coefficient=1.01))
    assert "adds 1.01 times the stream's typical norm at resid_post[1]" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        *({"positions": value} for value in (0, -1, "x", 1e400, 10**30)),
        *({"stream_norms": value} for value in (5, {"1": 0}, {"1": "x"}, {"1": 10**400})),
        *({"directions": value} for value in (5, {}, {"1": "!"}, {"1": ""}, {"1": "AAAAfwAA"})),
        *({"provenance": value} for value in (5, [[[], 1]])),
        {"norms": {}},
    ],
    ids=str,
)
def test_a_vector_that_cannot_be_read_is_refused(change):
    assert read_vector(json.dumps(INLINE), "x") == vector("x")
    with pytest.raises(ValueError, match=r"vector|provenance"):
        read_vector(json.dumps({**INLINE, **change}), "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", b"\xff", 20_000 * "["])
def test_text_that_is_no_vector_is_refused(text):
    with pytest.raises(ValueError, match=r"vector|Expecting"):
        read_vector(text, "x")


def test_every_setting_is_read_from_its_variable(tmp_path):
    """What ``additional_config`` says takes precedence; the token is in nobody's log."""
    wanted = {"mode": "exact", "slots": 3, "rows": 4, "programs": 0, "vectors": str(tmp_path)}
    wanted |= {"max_plan_bytes": 5, "max_terms": 6, "max_vectors": 7, "inline": True}
    wanted |= {"dose_warn": 0.5, "dose_refuse": 2.5, "admin_token": "secret"}
    environ = {f"STEERFAST_{name.upper()}": str(value) for name, value in wanted.items()}
    read = Settings.read(None, environ)
    assert read == Settings(**wanted)
    assert wanted.keys() == vars(read).keys()
    assert Settings.read({}, {}) == Settings()
    engine = {"mode": "fused", "slots": 9, "version": "1"}
    assert Settings.read(engine, environ) == Settings(**wanted | {"mode": "fused", "slots": 9})
    assert read.engine() == {"mode": "exact", "slots": 3, "rows": 4, "programs": 0}
    assert "secret" not in repr(read)
    for text, value in {"on": True, " Yes ": True, "0": False, "off": False}.items():
        assert Settings.read(None, {"STEERFAST_INLINE": text}).inline is value


BAD = {"MODE": ["quick", ""], "INLINE": ["maybe", ""], "VECTORS": ["/no/such/folder"]}
BAD |= {name: ["many", "0", "-1", "1.5", ""] for name in ("SLOTS", "ROWS", "MAX_PLAN_BYTES")}
BAD |= {name: ["many", "0", "1e3"] for name in ("MAX_TERMS", "MAX_VECTORS")}
BAD |= {"PROGRAMS": ["-1", "x"], "DOSE_WARN": ["nan", "0", "x"], "DOSE_REFUSE": ["nan", "-1"]}
TYPES = {"slots": ["12", None, 1.5, True], "max_terms": [[3]], "inline": ["no", 5], "mode": [3]}
TYPES |= {"dose_warn": ["x"], "dose_refuse": [None], "vectors": [5]}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_a_bad_variable_is_named(name, text):
    with pytest.raises(ValueError, match=f"STEERFAST_{name}"):
        Settings.read(None, {f"STEERFAST_{name}": text})


@pytest.mark.parametrize(("name", "value"), [(n, value) for n in TYPES for value in TYPES[n]])
def test_a_value_of_the_wrong_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"STEERFAST_{name.upper()}"):
        Settings.read({name: value}, {})


@pytest.mark.parametrize("name", ["slot", "admin_token", "STEERFAST_SLOTS"])
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown keys .'{name}'.*known: .*slots"):
        Settings.read({name: "secret"}, {})


@pytest.mark.parametrize("value", ["polite", json.dumps(plan()), plan(), MappingProxyType(plan())])
def test_what_a_client_sends_is_what_the_server_reads(value):
    [(key, text)] = openai_args(value)["vllm_xargs"].items()
    assert key == FIELD
    assert json.loads(json.dumps(text)) == text
    assert reader().read(text).plan == reader().read(value if value == "polite" else plan()).plan


def test_a_plan_is_sent_by_value_or_by_names_that_are_guarded():
    text = openai_args(FULL)["vllm_xargs"][FIELD]
    assert reader(inline=True).read(text).plan == FULL
    with pytest.raises(ValueError, match="STEERFAST_INLINE"):
        reader().read(text)
    named, other = openai_args(FULL, inline=False)["vllm_xargs"][FIELD], reader()
    assert other.read(named).plan == FULL
    other.catalogue.put("calm", vector("calm", 9))
    with pytest.raises(ValueError, match="another content of vector 'calm'"):
        other.read(named)
