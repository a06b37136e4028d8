"""What an engine lets in is what its settings say: how much a plan adds at a site, and how many plans there is room for."""

from __future__ import annotations

import json
import logging
import math
import random
from functools import partial

import pytest
import torch

import steerfast as sf
from steerfast.serving.arrival import arrived, packed_of
from steerfast.serving.catalogue import Catalogue
from steerfast.serving.dose import dose
from steerfast.serving.reader import PlanReader
from steerfast.serving.settings import Settings
from steerfast.serving.vllm.admission import Room
from steerfast.serving.wire import prepare, to_wire
from steerfast.table.lowering import lower
from steerfast.table.packing import Cost
from steerfast.table.table import Table


@pytest.mark.parametrize("seed", range(20))
def test_room_is_counted_by_distinct_plans_and_never_exceeded(seed):
    """Against a list of who is in: a plan enters if it is there already, or fits beside those that are."""
    chance = random.Random(seed)
    capacity = Cost(*(chance.randrange(1, 9) for _ in Cost._fields))
    plans = [
        {"share": str(number), "cost": [chance.randrange(5) for _ in capacity]}
        for number in range(12)
    ]
    room, inside, refused = Room(capacity), [], 0
    for _ in range(300):
        if inside and chance.random() < 0.45:
            room.leave(inside.pop(chance.randrange(len(inside))))
        else:
            wire = chance.choice(plans)
            both = {one["share"]: one["cost"] for one in [*inside, wire]}.values()
            fits = all(sum(cost[at] for cost in both) <= most for at, most in enumerate(capacity))
            assert room.enter(wire) is fits
            inside += [wire] * fits
            refused += not fits
        distinct = {one["share"]: one["cost"] for one in inside}
        used = [sum(cost[at] for cost in distinct.values()) for at in range(3)]
        assert room.free == [most - one for most, one in zip(capacity, used, strict=True)]
        assert min(room.free) >= 0
        assert room.holders == {
            name: sum(one["share"] == name for one in inside) for name in distinct
        }
    assert refused
    for wire in inside:
        room.leave(wire)
    assert (room.free, room.holders) == (list(capacity), {})


def test_equal_plans_share_and_the_last_to_leave_makes_room():
    room = Room(Cost(2, 2, 2))
    large, small = ({"share": str(slots), "cost": [slots, 1, 0]} for slots in (2, 1))
    assert [room.enter(large) for _ in range(3)] == [True] * 3
    assert not room.enter(small)
    for left in (2, 1):
        room.leave(large)
        assert room.holders == {"2": left}
        assert not room.enter(small)
    room.leave(large)
    assert room.enter(small)
    assert not room.enter(large)
    with pytest.raises(KeyError):
        room.leave(large)
    assert (room.free, room.holders) == ([1, 1, 2], {"1": 1})


SHARED = [
    sf.SteeringVector(str(seed), {at: torch.randn(8, generator=rng) for at in range(3)})
    for seed in range(3)
    if (rng := torch.Generator().manual_seed(seed))
]


def some_plan(chance):
    """One of many that have directions and programs in common."""
    return sf.Plan(
        tuple(
            sf.Term(
                chance.choice(SHARED),
                chance.choice([1.0, 2.0]),
                tuple(chance.sample(range(3), chance.randrange(1, 4))),
                select=chance.choice(["all", "prompt", "generated"]),
                operator=chance.choice(["add", "ablate", "add_relative"]),
            )
            for _ in range(chance.randrange(1, 4))
        )
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_table_of_this_size_has_room_for_whoever_was_let_in(seed):
    chance, capacity = random.Random(seed), Cost(5, 24, 9)
    room, (slots, rows, programs) = Room(capacity), capacity
    table = Table(3, 8, slots=slots, bank_rows=rows, programs=programs)
    wires = [
        arrived(to_wire(one, 3, None), 3, 8, Cost(99, 99, 99))
        for one in map(prepare, map(some_plan, [chance] * 14))
    ]
    inside, count = [], [0, 0]
    for _ in range(150):
        if inside and chance.random() < 0.4:
            entry, wire = inside.pop(chance.randrange(len(inside)))
            table.release(entry)
            room.leave(wire)
            continue
        wire = chance.choice(wires)
        entered = room.enter(wire)
        count[entered] += 1
        if entered:
            packed = partial(packed_of, wire, 8)
            inside.append((table.hold(wire["share"], packed), wire))
    assert min(count) > 5, "as many were let in, or refused, as show something"


A, B = (
    sf.SteeringVector(name, {0: torch.tensor(v), 1: torch.tensor(v)}, {0: 2.0, 1: 4.0})
    for name, v in (("a", [3.0, 4.0, 0.0]), ("b", [0.0, 0.0, 5.0]))
)
BARE = sf.SteeringVector("bare", {0: torch.ones(3)})
ROWS = sf.SteeringVector("rows", {0: 8 * torch.eye(3)}, {0: 2.0})
AT0, RISING = "resid_post[0]", sf.Schedule(((0, 0.5), (3, -4.0)))


def two(one, coefficient, **fields):
    return sf.Plan((sf.Term(A, 2.0, (0,), select="prompt"), sf.Term(one, coefficient, **fields)))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (sf.steer(A, 2.0), (5.0, AT0)),
        (sf.steer(A, 2.0, layers=[1]), (2.5, "resid_post[1]")),
        (sf.steer(A, 2.0, layers=[1], site="resid_mid"), (2.5, "resid_mid[1]")),
        (sf.steer(A, 2.0, layers=[1], site="resid_pre"), (5.0, AT0)),
        (sf.steer(A, 2.0, layers=[0], site="resid_pre"), (0.0, "")),
        (sf.steer(BARE, 2.0), (0.0, "")),
        (sf.steer(A, -0.3, scale="stream", layers=[0]), (0.3, AT0)),
        (sf.steer(A, 2.0, schedule=RISING), (20.0, AT0)),
        (sf.steer(A, -0.5, operator="add_relative", layers=[0], schedule=RISING), (2.0, AT0)),
        (sf.steer(A, 3.0, operator="signed"), (1.5, AT0)),
        (sf.steer(A, operator="clamp", target=-3.0), (1.5, AT0)),
        (sf.steer(A, operator="floor", target=3.0), (1.5, AT0)),
        (sf.steer(A, operator="ablate", layers=[0]), (0.0, AT0)),
        (sf.steer(ROWS, 1.0, select=sf.First(2)), (4.0, AT0)),
        (two(B, 2.0, layers=(0,)), (math.sqrt(200) / 2, AT0)),
        (two(A, -1.0, layers=(0,)), (2.5, AT0)),
        (two(B, 0.5, layers=(0,), operator="add_relative"), (5.5, AT0)),
        (two(A, 3.0, layers=(0,), select="generated"), (7.5, AT0)),
        (two(BARE, 1.0), (math.sqrt(7**2 + 9**2 + 1) / 2, AT0)),
        (two(BARE, 0.5), (math.sqrt(6.5**2 + 8.5**2 + 0.25) / 2, AT0)),
    ],
)
def test_the_dose_is_the_closed_form(given, wanted):
    assert dose(given, lower(given)) == (pytest.approx(wanted[0]), wanted[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"gate": sf.Gate("hard", B, bias=1e9)},
        {"operator": "map", "read": B, "bias": 1.0},
        {"operator": "feature_clamp", "read": B, "target": 2.0, "threshold": 1e9},
    ],
    ids=["gate", "map", "feature_clamp"],
)
def test_no_operator_adds_more_than_the_dose_says(fields):
    """Each adds 2 A to an h with <h, b> = 0: five times the stream's norm."""
    given = sf.steer(A, 1.0 if "target" in fields else 2.0, layers=[0], **fields)
    assert dose(given, lower(given))[0] >= 5.0


def test_a_dose_beyond_the_first_limit_is_logged(caplog):
    catalogue = Catalogue()
    catalogue.put("a", A)
    reader = PlanReader(Settings(dose_warn=1.0), 2, 3, catalogue=catalogue)
    term = {"vector": "a", "layers": [1], "scale": "stream"}
    with caplog.at_level(logging.WARNING, "steerfast"):
        reader.read(json.dumps({"terms": [{**term, "coefficient": 0.99}]}))
        assert not caplog.records
        reader.read(json.dumps({"terms": [{**term, "coefficient": 1.01}]}))
    assert "adds 1.01 times the stream's typical norm at resid_post[1]" in caplog.text


def test_every_setting_is_read_from_its_variable(tmp_path):
    """What ``additional_config`` says takes precedence, and the token is in nobody's log."""
    wanted = {"mode": "exact", "slots": 3, "rows": 4, "programs": 0, "vectors": str(tmp_path)}
    wanted |= {"max_plan_bytes": 5, "max_terms": 6, "max_vectors": 7, "inline": True}
    wanted |= {"dose_warn": 0.5, "dose_refuse": 2.5, "admin_token": "secret"}
    environ = {f"STEERFAST_{name.upper()}": str(value) for name, value in wanted.items()}
    read = Settings.read(None, environ)
    assert vars(read) == wanted
    assert Settings.read({}, {}) == Settings()
    engine = {"mode": "fused", "slots": 9, "version": "1"}
    assert Settings.read(engine, environ) == Settings(**wanted | {"mode": "fused", "slots": 9})
    assert read.engine() == {"mode": "exact", "slots": 3, "rows": 4, "programs": 0}
    assert "secret" not in repr(read)
    for text, value in {"on": True, " Yes ": True, "0": False, "off": False}.items():
        assert Settings.read(None, {"STEERFAST_INLINE": text}).inline is value


BAD = {"mode": ["quick", ""], "inline": ["maybe", ""], "vectors": ["/no/such/folder"]}
BAD |= {name: ["many", "0", "-1", "1.5", ""] for name in ("slots", "rows", "max_plan_bytes")}
BAD |= {name: ["many", "0", "1e3"] for name in ("max_terms", "max_vectors")}
BAD |= {"programs": ["-1", "x"], "dose_warn": ["nan", "0", "x"], "dose_refuse": ["nan", "-1"]}
TYPES = {"slots": ["12", None, 1.5, True], "max_terms": [[3]], "inline": ["no", 5], "mode": [3]}
TYPES |= {"dose_warn": ["x"], "dose_refuse": [None], "vectors": [5]}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_a_bad_variable_is_named(name, text):
    with pytest.raises(ValueError, match=f"STEERFAST_{name.upper()}"):
        Settings.read(None, {f"STEERFAST_{name.upper()}": text})


@pytest.mark.parametrize(("name", "value"), [(name, one) for name in TYPES for one in TYPES[name]])
def test_a_value_of_the_wrong_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"STEERFAST_{name.upper()}"):
        Settings.read({name: value}, {})


@pytest.mark.parametrize("name", ["slot", "admin_token", "STEERFAST_SLOTS"])
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown keys .'{name}'.*known: .*slots"):
        Settings.read({name: "secret"}, {})
