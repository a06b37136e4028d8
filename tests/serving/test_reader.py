"""The reader makes of whatever a client sends a plan that runs, or a ValueError with the reason."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch

import steerfast as sf
from steerfast.io.plans import plan_to_json
from steerfast.io.vectors import vector_to_json
from steerfast.routing.itinerary import itinerary
from steerfast.routing.router import BASE, GAIN, make_router
from steerfast.serving.arrival import arrived, packed_of, way_of
from steerfast.serving.catalogue import Catalogue
from steerfast.serving.client import openai_args
from steerfast.serving.reader import PlanReader
from steerfast.serving.settings import Settings
from steerfast.serving.vllm.device_route import DeviceRoute
from steerfast.serving.wire import FIELD, to_wire
from steerfast.table.packing import Cost
from steerfast.table.table import Table

D, LAYERS, PROMPT = 8, 4, [5, 7, 8, 6]


def vector(name, seed, size=D, layers=LAYERS):
    rng = torch.Generator().manual_seed(seed)
    directions = {at: torch.randn(size, generator=rng) for at in range(layers)}
    return sf.SteeringVector(name, directions, dict.fromkeys(range(layers), 2.0))


JOY, CALM = vector("joy", 0), vector("calm", 1)
FAINT = sf.SteeringVector("faint", {1: torch.full((D,), 1e-30)})
VECTORS = JOY, CALM, FAINT, vector("wide", 2, size=16), vector("tall", 3, layers=9)
INLINE, TEST = vector_to_json(CALM), {"kind": "cosine", "key": "calm", "layer": 1}


def reader(**settings):
    catalogue = Catalogue()
    for one in VECTORS:
        catalogue.put(one.name, one)
    catalogue.put("polite", sf.steer(JOY, 2.0, layers=[1]))
    return PlanReader(Settings(**settings), LAYERS, D, catalogue=catalogue)


def plan(*more, top=None, **term):
    return {"terms": [{"vector": "joy", "layers": [1], **term}, *more], **(top or {})}


def condition(**fields):
    return plan(top={"condition": {"tests": [{**TEST, **fields}]}})


def nested(depth):
    value: object = []
    for _ in range(depth):
        value = [value]
    return {"terms": value}


COEFFICIENT, TARGET = (
    f'{{"terms": [{{"vector": "joy", "{name}": %s}}]}}' for name in ("coefficient", "target")
)
# By the reason, or a part of it.
REFUSED = {
    "condition: ": [condition()],
    "a plan is JSON text": [5, True, 0.5, b"{}", [plan()], plan],
    "a name is 1 to 64 letters": ["", "../polite", "/etc/passwd", "a/b", ".", "[]", "\ud800"],
    "a name is": [plan(vector="../joy"), plan(operator="map", read="/joy"), condition(key="a/b")],
    "there is no plan 'joy'": ["joy", " joy "],
    "there is no vector 'no'": [plan(vector="no"), plan(read="no"), condition(key="no")],
    "this text is not: ": ["{", '{"terms": [}', "{'terms': []}"],
    "1e400', which is beyond float64": [COEFFICIENT % "1e400"],
    "NaN, which is no number of JSON": [plan(coefficient=math.nan)],
    "-Infinity, which is no number": [condition(bias=-math.inf)],
    "has 'coefficient' twice": [
        '{"terms": [{"vector": "joy", "coefficient": 1, "coefficient": 9}]}'
    ],
    "which 64 bits do not": [TARGET % ("9" * 400), plan(target=10**400)],
    "64 bits do not|Exceeds the limit": [TARGET % ("9" * 5000), {"terms": 10**5000}],
    "float32": [plan(coefficient=1e39), plan(operator="clamp", target=1e39)],
    "holds what JSON cannot": [{"terms": {1, 2}}, {**plan(), (1, 2): 3}, nested(20_000)],
    "nested too deeply": ['{"terms": ' + 20_000 * "["],
    "unknown keys .'1'": [{**plan(), 1: 2}, plan(**{"1": 2}), condition(**{"1": 2})],
    "'terms' of a plan is a list": [{}, {"terms": {}}, {"terms": None}],
    "at least": [{"terms": []}, {"terms": [{}]}, nested(3)],
    "of schema": [plan(top={"schema": "steerfast.plan/9"})],
    "a schedule": [plan(top={"schedule": value}) for value in (5, [], [[0]], [[0.5, 1]])],
    "'kind', 'key' and 'layer'": [plan(top={"condition": {"tests": [{"kind": "cosine"}]}})],
    "'tests' of a condition is a list": [
        plan(top={"condition": value}) for value in ({}, {"tests": {}})
    ],
    "a condition is an object": [plan(top={"condition": value}) for value in ([], "x")],
    "has no layer 99": [plan(layers=[99]), condition(layer=99)],
    "model has layers 0..3": [plan(vector="tall", layers=[4]), condition(key="tall", layer=8)],
    "hidden size 16, but this model": [plan(vector="wide")],
    "coefficient": [plan(coefficient=value) for value in ("2", True, [], None)],
    "threshold": [condition(threshold="x"), condition(threshold=None)],
    "is an integer": [plan(layers=value) for value in ("1", [1.0], [True], [None], {"1": 2}, 1.0)],
    "a name or an object": [plan(vector=5), plan(vector=None), condition(key=[])],
    "digest": [plan(vector_digest="0"), plan(vector_digest=5), condition(key_digest={})],
    "unknown": [plan(operator="push"), plan(select="some"), plan(site=[]), condition(kind=None)],
    "needs": [plan(operator="clamp"), plan(operator="map"), plan(operator="rotate_to", angle=1)],
    "a gate is": [plan(gate=value) for value in (None, "hard", {"kind": "hard"})],
    "a selector is": [plan(select=value) for value in ({}, 5, {"first": 2, "positions": [1]})],
}
OVER = [
    ({"max_terms": 1}, plan({"vector": "calm"}), "takes up to 1"),
    ({"max_plan_bytes": 44}, plan(), "has 45 bytes.*STEERFAST_MAX_PLAN_BYTES"),
    ({"slots": 1}, plan({"vector": "calm", "select": "generated"}), "needs 2 slots.*_SLOTS"),
    ({"rows": 1}, plan(layers=[0, 1]), "more than the 1 rows.*_ROWS"),
    ({"programs": 0}, plan(operator="ablate"), "more than the 0 programs.*_PROGRAMS"),
    ({"dose_refuse": 2.9}, plan(scale="stream", coefficient=-3), "resid_post.1.*_DOSE_REFUSE"),
    ({"inline": False}, plan(vector=INLINE), "vector: .*STEERFAST_INLINE"),
    ({"inline": False}, plan(operator="map", read=INLINE), "read: .*STEERFAST_INLINE"),
    ({"inline": False}, plan(operator="rotate_by", second=INLINE, angle=1), "second: .*_INLINE"),
    ({"inline": False}, plan(gate={"kind": "hard", "key": INLINE}), "key: .*STEERFAST_INLINE"),
]
ENOUGH = {"max_terms": 2, "max_plan_bytes": 45, "slots": 2, "rows": 2, "programs": 1}
ENOUGH |= {"dose_refuse": 3.1, "inline": True}
UNFIT = {f"schedule from {at}": plan(top={"schedule": [[at, 1]]}) for at in (10**30, -(2**70))}
UNFIT |= {f"gain {gain}": plan(top={"schedule": [[0, gain]]}) for gain in (1e39, -1e300)}
UNFIT["bias"] = plan(operator="map", read="joy", coefficient=1e10, bias=1e300)
UNFIT["twice the coefficient"] = plan(operator="reflect", coefficient=1e308)
UNFIT["a gate's bias"] = plan(gate={"kind": "hard", "key": "faint", "bias": 1e300})


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(reason):
    for value in REFUSED[reason]:
        with pytest.raises(ValueError, match=reason):
            reader(inline=True).read(value)


@pytest.mark.parametrize(("limits", "value", "reason"), OVER)
def test_limits_refuse_and_what_just_fits_is_read(limits, value, reason):
    with pytest.raises(ValueError, match=reason):
        reader(**limits).read(value)
    assert reader(**{name: ENOUGH[name] for name in limits}).read(value)
    with pytest.raises(ValueError, match="has 22 bytes"):
        reader(max_plan_bytes=21).read(11 * "é")


def test_terms_are_counted_before_they_are_made(monkeypatch):
    made = []
    monkeypatch.setattr("steerfast.io.plans.Term", lambda *a, **k: made.append(a))
    with pytest.raises(ValueError, match="the plan has 2000; this server takes up to 32"):
        reader().read({"terms": 2000 * [{"vector": "joy"}]})
    assert made == []


@pytest.mark.parametrize("name", UNFIT)
def test_a_number_that_no_worker_could_take_is_refused(name):
    with pytest.raises(ValueError, match=r"schedule|float32|finite|64 bits"):
        reader().read(UNFIT[name])


def test_every_form_of_a_plan_is_read_and_names_mean_what_they_mean_now():
    one, registered = reader(), sf.steer(JOY, 2.0, layers=[1])
    for value in ("polite", " polite\n", plan(coefficient=2), json.dumps(plan(coefficient=2))):
        assert one.read(value).plan == registered
    assert one.read(registered).plan is registered
    assert one.read(None) is one.read(plan(coefficient=0)) is None
    assert one.read(plan()) is one.read(plan())  # remembered
    one.catalogue.put("joy", CALM)
    assert one.read(plan()).plan == sf.steer(CALM, layers=[1])


def test_a_refusal_is_remembered_until_a_name_means_something_else(monkeypatch):
    one = reader()
    asked = []
    own = one._plan
    monkeypatch.setattr(one, "_plan", lambda text: asked.append(text) or own(text))
    said = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="there is no vector 'later'") as caught:
            one.read(plan(vector="later"))
        said.add(str(caught.value))
    assert len(said) == len(asked) == 1
    one.catalogue.put("later", JOY)
    assert one.read(plan(vector="later")).plan.terms[0].vector == JOY
    assert len(asked) == 2


FULL = sf.Plan(
    (
        sf.Term(JOY, 0.5, (1, 2), scale="stream", gate=sf.Gate("hard", CALM, bias=0.5)),
        sf.Term(CALM, 0.1, (0,), operator="map", read=JOY, bias=0.1, select=sf.Positions(-2, 9)),
        sf.Term(CALM, layers=(0,), operator="feature_clamp", read=JOY, target=2.0, threshold=1.0),
        sf.Term(JOY, layers=(3,), operator="rotate_to", second=CALM, angle=0.5),
        sf.Term(CALM, layers=(3,), operator="clamp", target=1.0, select=sf.AfterSequence((7, 8))),
    ),
    finish="preserve",
    schedule=sf.Schedule(((-2, 0.5), (3, 1.5))),
)
CONDITION = sf.Condition(sf.Test("probe", CALM, layer=0, bias=0.25))
NUMBERS = [0, -1, 3, 2**63, -(10**30), 10**400, 0.5, -0.0, 1e-320, 1e39, -1e308, math.nan, math.inf]
NAMES = ["", "joy", "no", "../joy", "all", "generated", "ablate", "slerp", "resid_mid", "\ud800"]
LISTS = [[], [1], [[]], [[0, 1.0]], {}, {"first": 2}, {"positions": [1, "prompt_end"]}, INLINE]
VALUES = [None, True, False, *NUMBERS, *NAMES, *LISTS]


def places(value):
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def swept():
    """A valid plan with each of its values in turn left out, or replaced by each of VALUES."""
    text = plan_to_json(FULL, inline=False)
    for at in range(len([*places(json.loads(text))])):
        for value in (..., *VALUES):
            data = json.loads(text)
            where, key = [*places(data)][at]
            if value is ...:
                del where[key]
            else:
                where[key] = value
            yield data


def changed(seed, count=60):
    """Valid plans with one to three values dropped, replaced, cut short, doubled, or copied elsewhere."""
    chance = random.Random(seed)
    full = FULL, replace(FULL, condition=CONDITION)
    bases = [json.loads(plan_to_json(one, inline=at)) for one in full for at in (True, False)]
    for _ in range(count):
        data = copy.deepcopy(chance.choice([*bases, plan()]))
        for _ in range(chance.randrange(1, 4)):
            spots = [*places(data)] or [([None], 0)]
            (where, key), (other, place) = chance.choice(spots), chance.choice(spots)
            kind = chance.choice(["drop", "replace", "replace", "copy", "double", "cut"])
            value = copy.deepcopy(chance.choice(VALUES) if kind == "replace" else where[key])
            if kind == "drop":
                del where[key]
            elif kind == "double" and isinstance(where, list):
                where.insert(key, value)
            elif kind == "copy":
                other[place] = value
            else:
                half = kind == "cut" and isinstance(value, str)
                where[key] = value[: len(value) // 2] if half else value
        yield data if chance.random() < 0.5 else json.dumps(data)


@functools.cache
def outcomes(seed):
    """([Prepared or None], refused, [what came instead of a ValueError])."""
    one, read, refused, wrong = reader(inline=True), [], 0, []
    for value in swept() if seed == "sweep" else changed(seed):
        try:
            read.append(one.read(value))
        except ValueError:
            refused += 1
        except Exception as error:
            wrong.append((error, value))
    return read, refused, wrong


@pytest.mark.parametrize("seed", ["sweep", *range(8)])
def test_a_plan_changed_anyhow_is_read_or_refused(seed):
    read, refused, wrong = outcomes(seed)
    assert wrong == []
    assert any(read)
    assert refused


@pytest.mark.parametrize("seed", ["sweep", *range(8)])
def test_what_was_read_runs_in_a_worker(seed):
    """In a table of just the size that it was said to need, with finite numbers only."""
    for prepared in filter(None, outcomes(seed)[0]):
        try:
            wire = to_wire(prepared, len(PROMPT), PROMPT)
        except ValueError:  # a sequence that this prompt does not have
            continue
        wire = arrived(wire, LAYERS, D, Cost(99, 999, 99))
        slots, rows, programs = wire["cost"]
        table = Table(LAYERS, D, slots=slots, bank_rows=rows, programs=programs)
        held = table.hold("it", partial(packed_of, wire, D))
        one = way_of(wire, held.slots)
        assert one == itinerary(Table(LAYERS, D).acquire(prepared.plan), len(PROMPT), PROMPT)
        router, rows = make_router(1), np.zeros((5, 64), np.int32)
        router.set(0, *map(list, one))
        router.fill([0], [0], [40], rows)
        DeviceRoute(seats=1).set(0, one)
        assert np.isfinite(rows[[GAIN, BASE]].view(np.float32)).all()
        assert table.bank.isfinite().all()
        assert table.reads[..., 6:].contiguous().view(torch.float32).isfinite().all()


@pytest.mark.parametrize("value", ["polite", json.dumps(plan()), plan(), MappingProxyType(plan())])
def test_what_a_client_sends_is_what_the_server_reads(value):
    [(key, text)] = openai_args(value)["vllm_xargs"].items()
    assert key == FIELD
    assert reader().read(text).plan == sf.steer(JOY, 2.0 if value == "polite" else 1.0, layers=[1])


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


@pytest.mark.parametrize("first", [0, 1])
def test_norms_that_one_client_makes_up_decide_about_nobody_elses_plan(first):
    """Equal plans, by their digest, of which one says that the stream is tiny, and so that it adds far too much."""
    one = reader(inline=True, dose_refuse=10.0)
    liar = plan(vector=vector_to_json(replace(CALM, stream_norms={1: 1e-6})))
    texts = [json.dumps(liar), json.dumps(plan(vector=vector_to_json(CALM)))]
    for text in texts[first:] + texts[:first]:
        if text == texts[0]:
            with pytest.raises(ValueError, match="times the stream's typical norm"):
                one.read(text)
        else:
            assert to_wire(one.read(text), 3, [1, 2, 3])["phases"] == 1
