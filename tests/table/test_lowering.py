"""From plans to deltas: scales, sums, phases, sites, in closed form."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch

from steerfast import AfterSequence, Plan, SteeringVector, Term, steer
from steerfast.errors import PlanTooLargeError, TableFullError
from steerfast.plans.sites import site_count, site_index, site_name
from steerfast.routing.itinerary import itinerary
from steerfast.routing.packed import PackedRequests, along
from steerfast.routing.routing import Routing
from steerfast.table import lowering
from steerfast.table import table as table_module
from steerfast.table.lowering import lower
from steerfast.table.packing import Cost, pack
from steerfast.table.table import Table


def vector(*values, layer=1, norm=10.0):
    return SteeringVector("v", {layer: torch.tensor(values)}, {layer: norm})


A, B = vector(3.0, 4.0), vector(0.0, 2.0)


def delta(plan, site="resid_post", layer=1, phase=0):
    return lower(plan).phases[phase].sites[site_index(site, layer)].delta


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [("raw", [6.0, 8.0]), ("unit", [1.2, 1.6]), ("equal", [6.0, 8.0]), ("stream", [12.0, 16.0])],
)
def test_scales_of_one_vector(scale, wanted):
    assert torch.equal(delta(steer(A, 2.0, scale=scale)), torch.tensor(wanted))


def test_equal_uses_the_mean_norm_of_distinct_vectors_at_the_site():
    plan = Plan((Term(A, 1.0, scale="equal"), Term(A, 1.0), Term(B, 1.0, scale="equal")))
    mean = (5.0 + 2.0) / 2  # A twice counts once
    wanted = (
        torch.tensor([0.6, 0.8]) * mean + torch.tensor([3.0, 4.0]) + torch.tensor([0.0, 1.0]) * mean
    )
    torch.testing.assert_close(delta(plan), wanted)
    elsewhere = Term(vector(0.0, 100.0, layer=2), 1.0)
    assert torch.equal(delta(Plan((Term(A, scale="equal"), elsewhere))), torch.tensor([3.0, 4.0]))


def test_constant_terms_collapse_into_one_delta():
    plan = Plan(tuple(Term(A, 0.1 * k) for k in range(1, 11)))
    (phase,) = lower(plan).phases
    assert len(phase.sites) == 1
    torch.testing.assert_close(delta(plan), 5.5 * torch.tensor([3.0, 4.0]))


def test_the_sum_is_rounded_once():
    big, small = vector(1e8, 1e8), vector(1.0, 1.0)
    plan = Plan((Term(big, 1.0), Term(small, 1.0), Term(big, -1.0)))
    assert torch.equal(delta(plan), torch.ones(2))


def test_selectors_cut_phases():
    plan = Plan((Term(A, select="prompt"), Term(B, select="generated"), Term(B, 10.0)))
    lowered = lower(plan)
    assert [phase.name for phase in lowered.phases] == ["prompt", "generated"]
    assert lowered.course({"start": 0, "prompt_end": 5}) == [(0, 0), (5, 1)]
    assert torch.equal(delta(plan, phase=0), torch.tensor([3.0, 24.0]))
    assert torch.equal(delta(plan, phase=1), torch.tensor([0.0, 22.0]))
    only_generated = lower(steer(A, select="generated"))
    assert [phase.name for phase in only_generated.phases] == ["generated"]
    assert only_generated.course({"start": 0, "prompt_end": 5}) == [(0, -1), (5, 0)]


def test_zero_coefficients_leave_the_site_alone():
    assert lower(steer(A, 0.0)).phases[0].sites == {}
    assert lower(steer(A, -0.0, finish="preserve")).phases[0].sites == {}
    opposite = Plan((Term(A, 1.0), Term(A, -1.0)), "preserve")
    assert torch.equal(delta(opposite), torch.zeros(2))  # active, so the finish applies


def test_more_than_float32_holds_is_an_error():
    with pytest.raises(ValueError, match=r"float32 can hold at resid_post\[1\]"):
        delta(steer(vector(1e30, 0.0), 1e30))


def after(count, **fields):
    """Terms that act after sequences of which nobody knows the order: 2^count - 1 phases."""
    vectors = [vector(1.0, float(number), layer=layer) for number in range(count) for layer in (0,)]
    return Plan(
        tuple(
            Term(one, 0.5 + number, select=AfterSequence((number,)), **fields)
            for number, one in enumerate(vectors)
        )
    )


def test_limits_come_before_anything_is_computed(monkeypatch):
    computed = []
    monkeypatch.setattr(lowering, "_site", lambda *given: computed.append(given))
    lowered = lower(after(4))
    with pytest.raises(PlanTooLargeError, match=r"needs 15 slots.* there are 14 in all") as caught:
        pack(after(4), lowered.phases, Cost(14, 99, 99))
    assert caught.value.what == "slots"
    assert len(lowered.phases) == 15
    for use in (Table(1, 2, slots=14).acquire, Table(1, 2, slots=14).check_room):
        with pytest.raises(TableFullError, match=r"needs 15 slots.* slots=14 \(14 free\)"):
            use(after(4))
    assert computed == []


@pytest.mark.parametrize("plan", [after(4), after(4, operator="ablate")], ids=["add", "ablate"])
def test_packing_ends_where_the_room_does(plan, monkeypatch):
    """Of the rows or programs that there are, no more than one is computed too many."""
    whole = pack(plan, lower(plan).phases)
    own, computed = lowering._site, []
    monkeypatch.setattr(lowering, "_site", lambda *given: computed.append(given) or own(*given))
    rows, programs = whole.cost[1:]
    assert pack(plan, lower(plan).phases, Cost(15, rows, programs)).keys == whole.keys
    for room, what in ((Cost(15, 3, programs), "rows"), (Cost(15, rows, programs - 1), "programs")):
        if getattr(room, what) < 0:
            continue
        computed.clear()
        with pytest.raises(PlanTooLargeError, match=f"more than the {getattr(room, what)} {what}"):
            pack(plan, lower(plan).phases, room)
        assert len(computed) < 15 or what == "programs"


def test_phases_with_the_same_terms_at_a_site_are_lowered_once(monkeypatch):
    own, computed = lowering._site, []
    monkeypatch.setattr(lowering, "_site", lambda *given: computed.append(given) or own(*given))
    other = Term(vector(0.0, 1.0, layer=3), 2.0)
    lowered = lower(Plan((*after(3).terms, other)))
    found = [phase.sites[site_index("resid_post", 3)] for phase in lowered.phases]
    assert len(found) == 8
    assert all(one is found[0] for one in found)
    assert len(computed) == 1
    assert torch.equal(found[0].delta, torch.tensor([0.0, 2.0]))


def test_sites():
    names = [site_name(index) for index in range(site_count(2))]
    assert names == [
        "resid_pre[0]",
        "resid_mid[0]",
        "resid_post[0]",
        "resid_mid[1]",
        "resid_post[1]",
    ]
    assert site_index("resid_pre", 1) == site_index("resid_post", 0)
    for layer in range(2):
        for site in ("resid_mid", "resid_post"):
            assert site_name(site_index(site, layer)) == f"{site}[{layer}]"


def sums(phases):
    return [
        {site: steering.delta.tolist() for site, steering in one.sites.items()} for one in phases
    ]


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_prompt_meets_its_sequences_in_one_order_and_needs_those_phases_alone(count, monkeypatch):
    """After the first, the first two, ...: as many phases as sequences, with the sums that the whole plan has there."""
    plan = after(count)
    whole, order = lower(plan), random.Random(count).sample(range(count), count)
    prompt = [9, *order, 9]
    places = {"start": 0, "prompt_end": len(prompt)}
    places |= {(token,): prompt.index(token) for token in order}
    own, computed = lowering._site, []
    monkeypatch.setattr(lowering, "_site", lambda *given: computed.append(given) or own(*given))
    part = lower(plan).along(places)
    assert len(whole.phases) == 2**count - 1
    assert len(part.phases) == (count if whole.by_course else len(whole.phases))
    assert sums(part.phases) == [sums(whole.phases)[phase.number] for phase in part.phases]
    wanted = torch.zeros(2)
    for at, phase in part.course(places):
        if 1 <= at <= count:
            wanted += (0.5 + order[at - 1]) * torch.tensor([1.0, float(order[at - 1])])
        [steering] = {**whole.phases[phase].sites}.values() if at else [None]
        assert steering is None or torch.equal(steering.delta, wanted)
    computed.clear()
    part.forget()
    assert len(pack(plan, part.phases).sites) == len(part.phases) == len(computed)


def test_many_sequences_take_as_many_slots_as_the_prompt_has_of_them():
    """Ten in one order and in another, of 1023 combinations: twice ten slots."""
    plan, table = after(10), Table(1, 2, slots=20)
    places = {(token,): token for token in range(10)} | {"start": 0, "prompt_end": 12}
    lowered = lower(plan)
    one = table.acquire(plan, lowered.along(places))
    assert table.acquire(plan, lower(plan).along(places)) is one
    other = table.acquire(
        plan, lowered.along(places | {(token,): 9 - token for token in range(10)})
    )
    assert table.slots_in_use == 20
    assert sorted(slot for _, slot in one.course(places)) == sorted(one.slots)
    with pytest.raises(KeyError):  # of another order it has no phases, and says so
        one.course(places | {(0,): 3, (3,): 0})
    with pytest.raises(TableFullError, match="needs 1023 slots"):
        table.acquire(plan)
    assert {entry.key for entry in table.entries} == {one.key, other.key}


def test_what_was_lowered_is_not_kept():
    lowered = lower(after(4))
    kept = [weakref.ref(each.delta) for each in lowered.phases[-1].sites.values()]
    lowered.forget()
    gc.collect()
    assert [one() for one in kept] == [None]


@pytest.mark.parametrize("count", [2, 8])
def test_a_plan_that_is_in_the_table_is_not_lowered_again(count, monkeypatch):
    """By whichever request it came, and as whichever part; once it has left, it is."""
    plan, table = after(count), Table(1, 2, slots=20, bank_rows=20)
    requests, own, lowered = PackedRequests(Routing(table)), lowering.lower, []
    monkeypatch.setattr(table_module, "lower", lambda one: lowered.append(one) or own(one))
    order = list(range(count))
    for name, prompt in enumerate((order, order[::-1], [9, *order])):
        requests.admit(f"{name}", plan, prompt)
    assert lowered == [plan]
    for name, prompt in enumerate((order, order[::-1], [9, *order])):
        way = requests._live[f"{name}"].way
        assert way == itinerary(table.acquire(plan, along(own(plan), prompt)), len(prompt), prompt)
    requests = PackedRequests(Routing(Table(1, 2, slots=20)))
    requests.admit("elsewhere", plan, order)
    assert lowered == [plan, plan]
