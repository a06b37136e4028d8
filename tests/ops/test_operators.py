"""Every operator, gate and merge, from a plan through table and op, against its formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from steerfast import Gate, Plan, SteeringVector, Term, ops, steer
from steerfast.ops import reference
from steerfast.ops.arguments import validate
from steerfast.ops.records import MAX_READS, Op, Steering
from steerfast.plans.operators import OPERATORS
from steerfast.plans.sites import site_index
from steerfast.table.lowering import lower
from steerfast.table.table import Table

D, ROWS, LAYER = 24, 6, 1


def vector(seed, scale=1.0, layers=(LAYER,)):
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(
        f"v{seed}", {layer: scale * torch.randn(D, generator=generator) for layer in layers}
    )


V, W, A, KEY = vector(1, 3.0), vector(2, 0.5), vector(3), vector(4, 2.0)
v, w, a, key = (one.at(LAYER).double() for one in (V, W, A, KEY))
H = 5 * torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))
h = H.double()
n = h.norm(dim=-1, keepdim=True)


def hat(direction):
    return direction / direction.norm()


def dot(direction):
    return (h @ direction)[:, None]


def steered(plan, gain=1.0):
    """H after the plan, through table and op; the table is checked value by value."""
    table = Table(3, D, slots=4)
    entry = table.acquire(plan)
    slots = torch.full((ROWS,), entry.slots[0], dtype=torch.int32)
    records = table.records[site_index("resid_post", LAYER)]
    steering = Steering(slots, torch.full((ROWS,), gain), records, table.reads, table.bank)
    validate(steering)
    result = ops.steer(H, steering)
    torch.testing.assert_close(result, reference.steer(H, steering), rtol=2e-6, atol=2e-4)
    return result.double()


def near(result, wanted):
    torch.testing.assert_close(result, wanted, rtol=2e-6, atol=2e-5)


def plane(angle):
    b1 = hat(v)
    b2 = hat(w - (w @ b1) * b1)
    return b1, b2, dot(b1), dot(b2), math.cos(angle), math.sin(angle)


def rotate_to(angle):
    b1, b2, p1, p2, cos, sin = plane(angle)
    q = torch.hypot(p1, p2)
    return (q * cos - p1) * b1 + (q * sin - p2) * b2


def rotate_by(angle):
    b1, b2, p1, p2, cos, sin = plane(angle)
    return ((cos - 1) * p1 - sin * p2) * b1 + (sin * p1 + (cos - 1) * p2) * b2


def slerp(t):
    """The textbook form: |h| (sin((1-t) w) ĥ + sin(t w) v̂) / sin w."""
    angle = torch.acos(dot(hat(v)) / n)
    mixed = torch.sin((1 - t) * angle) * (h / n) + torch.sin(t * angle) * hat(v)
    return n * mixed / torch.sin(angle) - h


def feature(t, bias, threshold):
    z = dot(a) + bias
    return (t - torch.where(z > threshold, z, 0.0)) * v


p = dot(hat(v))
CASES = {
    "add": ({"coefficient": 1.5}, 1.5 * v.expand(ROWS, D)),
    "add_relative": ({"coefficient": -0.3}, -0.3 * n * hat(v)),
    "signed": ({"coefficient": 2.0}, 2.0 * torch.sign(p) * hat(v)),
    "ablate": ({"coefficient": 0.7}, -0.7 * p * hat(v)),
    "clamp": ({"target": 2.0}, (2.0 - p) * hat(v)),
    "floor": ({"target": 1.0}, (1.0 - p).clamp(min=0) * hat(v)),
    "ceiling": ({"target": 1.0}, -(p - 1.0).clamp(min=0) * hat(v)),
    "reflect": ({}, -2 * p * hat(v)),
    "map": ({"coefficient": 0.5, "read": A, "bias": 1.25}, 0.5 * (dot(a) + 1.25) * v),
    "feature_clamp": (
        {"read": A, "target": 3.0, "bias": 0.5, "threshold": 1.0},
        feature(3.0, 0.5, 1.0),
    ),
    "rotate_to": ({"second": W, "angle": 2.0}, rotate_to(2.0)),
    "rotate_by": ({"second": W, "angle": -0.8}, rotate_by(-0.8)),
    "slerp": ({"coefficient": 0.4}, slerp(0.4)),
}


def test_every_operator_is_here():
    assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize("operator", CASES)
def test_operators(operator):
    fields, u = CASES[operator]
    near(steered(steer(V, operator=operator, **fields)), h + u)
    near(steered(steer(V, operator=operator, **fields), gain=-0.5), h - 0.5 * u)


GATES = {
    "hard": (Gate("hard", KEY, bias=1.0), (dot(key) + 1.0 > 0).double()),
    "cosine": (Gate("cosine", KEY, threshold=0.05), (dot(hat(key)) / n > 0.05).double()),
    "sigmoid": (Gate("sigmoid", KEY, bias=-0.5), torch.sigmoid(dot(key) - 0.5)),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("operator", CASES)
def test_gated_operators(operator, gate):
    fields, u = CASES[operator]
    given, opened = GATES[gate]
    if gate != "sigmoid":
        assert 0 < opened.sum() < ROWS, "a gate that never changes its mind tests nothing"
    near(steered(steer(V, operator=operator, gate=given, **fields)), h + opened * u)


def test_terms_read_the_same_row_and_add_up():
    plan = Plan(
        (
            *tuple(Term(V, operator=name, **fields) for name, (fields, _) in CASES.items()),
            Term(W, operator="ablate", gate=GATES["hard"][0]),
            Term(W, 2.0, scale="unit"),
        )
    )
    wanted = h + sum(u for _, u in CASES.values()) + 2.0 * hat(w)
    wanted = wanted - GATES["hard"][1] * dot(hat(w)) * hat(w)
    result = steered(plan)
    torch.testing.assert_close(result, wanted, rtol=5e-6, atol=2e-4)


def test_ablations_of_one_strength_remove_their_span():
    plan = Plan((Term(V, operator="ablate"), Term(W, operator="ablate")))
    result = steered(plan)
    for direction in (v, w):
        assert (result @ hat(direction)).abs().max() < 1e-5
    basis = torch.linalg.qr(torch.stack([v, w]).T).Q
    near(result, h - h @ basis @ basis.T)
    # Different strengths do not merge: each reads the same row, and they add.
    apart = Plan((Term(V, operator="ablate"), Term(W, 0.5, operator="ablate")))
    near(steered(apart), h - dot(hat(v)) * hat(v) - 0.5 * dot(hat(w)) * hat(w))


def test_dependent_ablations_count_once():
    twice = SteeringVector("2v", {LAYER: 2 * V.at(LAYER)})
    plan = Plan((Term(V, operator="ablate"), Term(twice, operator="ablate")))
    near(steered(plan), h - dot(hat(v)) * hat(v))
    (phase,) = lower(plan).phases
    assert len(phase.sites[site_index("resid_post", LAYER)].reads) == 1


def test_nearly_parallel_ablations_still_span_a_plane():
    tilted = SteeringVector("t", {LAYER: V.at(LAYER) + 1e-3 * W.at(LAYER)})
    plan = Plan((Term(V, operator="ablate"), Term(tilted, operator="ablate")))
    basis = torch.linalg.qr(torch.stack([v, tilted.at(LAYER).double()]).T).Q
    torch.testing.assert_close(steered(plan), h - h @ basis @ basis.T, rtol=1e-4, atol=1e-3)


def reads(plan):
    (phase,) = lower(plan).phases
    return phase.sites[site_index("resid_post", LAYER)].reads


def test_what_is_constant_but_for_a_gate_or_the_norm_is_one_read():
    gate = GATES["hard"][0]
    gated = Plan(tuple(Term(vector(seed), 2.0, gate=gate) for seed in range(10, 40)))
    assert [one.read.op for one in reads(gated)] == [Op.KEY, Op.AFFINE]
    relative = Plan(tuple(Term(vector(s), 0.1, operator="add_relative") for s in range(10, 40)))
    assert [one.read.op for one in reads(relative)] == [Op.RELATIVE]
    wanted = h + n * sum(0.1 * hat(vector(s).at(LAYER).double()) for s in range(10, 40))
    near(steered(relative), wanted)


def test_sixteen_reads_fit_and_seventeen_do_not():
    terms = tuple(Term(vector(s), operator="clamp", target=1.0) for s in range(10, 10 + MAX_READS))
    assert len(reads(Plan(terms))) == MAX_READS
    with pytest.raises(ValueError, match=r"17 reading terms at resid_post\[1\].*takes 16"):
        reads(Plan((*terms, Term(V, operator="reflect"))))
    constants = tuple(Term(vector(s), 1.0) for s in range(40, 80))
    assert len(reads(Plan(terms + constants))) == MAX_READS  # constants cost nothing


@pytest.mark.parametrize(
    ("operator", "fields"),
    [
        *((name, {"coefficient": 0.0}) for name in ("add", "add_relative", "signed", "ablate")),
        ("reflect", {"coefficient": -0.0}),
        ("slerp", {"coefficient": 0.0}),
        ("map", {"coefficient": 0.0, "read": A}),
        ("rotate_by", {"angle": 0.0, "second": W}),
    ],
)
def test_at_zero_the_row_keeps_its_bits(operator, fields):
    plan = steer(V, operator=operator, finish="preserve", **fields)
    (phase,) = lower(plan).phases
    assert phase.sites == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operator": "clamp"}, r"'clamp' needs target: \(t - p\)"),
        (
            {"operator": "clamp", "target": 1.0, "coefficient": 2.0},
            "takes no coefficient; it takes target",
        ),
        ({"operator": "ablate", "scale": "unit"}, "'ablate' takes no scale"),
        ({"operator": "ablate", "target": 1.0}, "takes no target"),
        ({"operator": "rotate_to", "second": W}, "needs angle"),
        ({"operator": "rotate_by", "angle": 1.0}, "needs second"),
        ({"operator": "rotate_by", "angle": 1.0, "second": V}, "are parallel at layer 1"),
        ({"operator": "map"}, "needs read"),
        ({"operator": "clamp", "target": math.inf}, "target of 'v1' is inf"),
        ({"threshold": 1.0}, "'add' takes no threshold"),
        ({"gate": Gate("hard", vector(9, layers=(0,)))}, "has no layer 1"),
        ({"gate": Gate("hard", vector(9, 0.0))}, "gate's key 'v9' is zero at layer 1"),
        (
            {"operator": "map", "read": SteeringVector("small", {LAYER: torch.ones(3)})},
            "mixes hidden sizes 24 and 3",
        ),
    ],
)
def test_terms_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Term(V, **fields)


def test_zero_directions_cannot_be_normalised():
    zero = SteeringVector("zero", {LAYER: torch.zeros(D)})
    for name, (fields, _) in CASES.items():
        if OPERATORS[name].unit:
            with pytest.raises(ValueError, match=f"zero at layer 1, so operator '{name}'"):
                Term(zero, operator=name, **fields)
        else:
            Term(zero, operator=name, **fields)


def test_gates_that_make_no_sense():
    with pytest.raises(ValueError, match="unknown gate 'soft'; known: hard, cosine, sigmoid"):
        Gate("soft", KEY)
    with pytest.raises(ValueError, match="a cosine gate takes no bias"):
        Gate("cosine", KEY, bias=1.0)
    with pytest.raises(ValueError, match="a hard gate takes no threshold"):
        Gate("hard", KEY, threshold=0.5)
    with pytest.raises(ValueError, match="bias is nan"):
        Gate("hard", KEY, bias=math.nan)
    with pytest.raises(TypeError, match="key is a SteeringVector"):
        Gate("hard", torch.ones(D))
    with pytest.raises(TypeError, match="gate is a Gate"):
        Term(V, gate="hard")


def test_what_changes_the_effect_changes_the_digest():
    plans = [steer(V, operator=name, **fields) for name, (fields, _) in CASES.items()]
    plans += [steer(V, gate=gate) for gate, _ in GATES.values()]
    plans += [steer(V, gate=Gate("hard", A)), steer(V, gate=Gate("hard", KEY, bias=2.0))]
    plans += [steer(V, operator="clamp", target=2.5), steer(V, operator="map", read=W)]
    assert len({plan.digest for plan in plans}) == len(plans)


def test_equal_directions_and_programs_are_stored_once():
    everywhere = SteeringVector("v", dict.fromkeys(range(3), V.at(LAYER)))
    table = Table(3, D, slots=2, bank_rows=2, programs=2)
    full = table.acquire(steer(everywhere, operator="ablate"))
    assert len(set(full.rows)) == 1
    assert len(set(full.programs)) == 1
    half = table.acquire(steer(everywhere, 0.5, operator="ablate"))
    assert set(half.rows) == set(full.rows)
    table.release(full)
    other = table.acquire(
        steer(everywhere, operator="reflect")
    )  # takes the slot and program of `full`
    assert set(other.rows) == set(half.rows)
    assert other.programs[0] not in half.programs
    record = table.records[site_index("resid_post", 0), half.slots[0]]
    read = table.reads[record[2], 0]
    assert read[6:7].view(torch.float32).item() == -0.5
    assert torch.equal(table.bank[read[1]], hat(v).float())


def test_a_table_without_programs_takes_constants_only():
    table = Table(3, D, programs=0)
    table.acquire(steer(V, 2.0))
    with pytest.raises(Exception, match=r"programs=0 \(0 free\)"):
        table.acquire(steer(V, operator="ablate"))
