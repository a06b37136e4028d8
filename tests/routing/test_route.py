"""Routes: both routers and the tensor arithmetic, against what a loop over positions says."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerfast import (
    AfterSequence,
    First,
    Plan,
    Positions,
    Schedule,
    SteerfastError,
    SteeringVector,
    Term,
    steer,
)
from steerfast.ops import backends
from steerfast.routing.itinerary import itinerary
from steerfast.routing.route import Route, RowBuffers, Staging
from steerfast.routing.router import BASE, GAIN, POSITION, SEAT, SLOT, PythonRouter, make_router
from steerfast.table.table import Table

COMPILED = backends.compiled_module() is not None
ROUTERS = [PythonRouter, *([make_router] if COMPILED else [])]
SEQUENCE = (7, 8)
SELECTS = st.one_of(
    st.sampled_from(["all", "prompt", "generated", "after_prompt", "last_prompt_token"]),
    st.builds(Positions, st.integers(-6, 12)),
    st.builds(
        lambda start, size: Positions(start, start + size), st.integers(0, 9), st.integers(1, 5)
    ),
    st.builds(Positions, st.integers(-6, -1), st.just("prompt_end")),
    st.builds(First, st.integers(1, 6)),
    st.just(AfterSequence(SEQUENCE)),
)
SCHEDULES = st.none() | st.lists(
    st.tuples(st.integers(-12, 12), st.floats(-2, 2, width=32)),
    min_size=1,
    max_size=5,
    unique_by=lambda point: point[0],
).map(lambda points: Schedule(tuple(sorted(points))))
REQUESTS = st.lists(
    st.tuples(st.lists(SELECTS, min_size=1, max_size=4), SCHEDULES, st.integers(2, 9)),
    min_size=1,
    max_size=4,
)


def acts(select, t, prompt):
    """Whether a selector takes position t: its definition, word by word."""
    end = len(prompt)
    if isinstance(select, First):
        return t < select.count
    if isinstance(select, AfterSequence):
        found = [i for i in range(end - 1) if tuple(prompt[i : i + 2]) == select.tokens]
        return t >= found[-1] + 1
    if isinstance(select, Positions):
        start, stop = (
            end
            if bound == "prompt_end"
            else end + bound
            if bound is not None and bound < 0
            else bound
            for bound in (select.start, select.stop)
        )
        return start <= t and (stop is None or t < stop)
    return {
        "all": True,
        "prompt": t < end,
        "generated": t >= end,
        "after_prompt": t >= end - 1,
        "last_prompt_token": t == end - 1,
    }[select]


def gain(schedule, offset):
    if schedule is None:
        return 1.0
    at, gains = zip(*schedule.points, strict=True)
    return float(np.interp(offset, at, gains))


def make(requests):
    """(plans, prompts, table, entries): term k of a plan adds 4^k, so a slot's delta says which terms act."""
    plans, prompts = [], []
    for selects, schedule, length in requests:
        terms = [
            Term(SteeringVector("v", {0: torch.full((2,), 4.0**k)}), select=select)
            for k, select in enumerate(selects)
        ]
        plans.append(Plan(tuple(terms), schedule=schedule))
        prompts.append([*SEQUENCE, *range(10, 8 + length)])
    table = Table(1, 2, slots=256)
    return plans, prompts, table, [table.acquire(plan) for plan in plans]


def added(table, slot):
    if slot < 0:
        return 0.0
    row = int(table.records[2, slot, 0])
    return float(table.bank[row, 0]) if row >= 0 else 0.0


def wanted(plan, prompt, t):
    return sum(float(term.vector.at(0)[0]) for term in plan.terms if acts(term.select, t, prompt))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(REQUESTS, st.data())
def test_every_way_of_routing_is_the_definition(requests, data):
    plans, prompts, table, entries = make(requests)
    each = [
        itinerary(entry, len(prompt), prompt)
        for entry, prompt in zip(entries, prompts, strict=True)
    ]
    first = [data.draw(st.integers(0, 12)) for _ in plans]
    count = [data.draw(st.integers(0, 6)) for _ in plans]

    filled = []
    for make_one in ROUTERS:
        router = make_one(8)
        for seat, one in enumerate(each):
            router.set(seat, *map(list, one))
        rows = np.zeros((5, 64), np.int32)
        assert router.fill(range(len(plans)), first, count, rows) == sum(count)
        filled.append(rows)
    for rows in filled[1:]:
        assert np.array_equal(rows, filled[0])

    row = 0
    for seat, (plan, prompt) in enumerate(zip(plans, prompts, strict=True)):
        for t in range(first[seat], first[seat] + count[seat]):
            rows = filled[0][:, row]
            assert added(table, rows[SLOT]) == wanted(plan, prompt, t)
            assert rows[[GAIN, BASE]].view(np.float32) == pytest.approx(
                [gain(plan.schedule, t - len(prompt))] * 2, rel=1e-6, abs=1e-7
            )
            assert (rows[SEAT], rows[POSITION]) == (seat, t)
            row += 1
    assert (filled[0][SLOT, row:] == -1).all()
    assert (filled[0][SEAT, row:] == -1).all()

    route = Route(seats=2)
    route.assign(each)
    positions = torch.arange(14).expand(len(plans), -1)
    pads = torch.tensor([data.draw(st.integers(0, 3)) for _ in plans])
    real = torch.arange(14) >= pads[:, None]
    looked = route.look_up(len(plans), positions - pads[:, None], real)
    slots = looked.slot.view(len(plans), -1)
    for seat, (plan, prompt) in enumerate(zip(plans, prompts, strict=True)):
        for column in range(14):
            t = column - int(pads[seat])
            assert added(table, slots[seat, column]) == (wanted(plan, prompt, t) if t >= 0 else 0)
            if t >= 0:
                at = seat * 14 + column
                expected = gain(plan.schedule, t - len(prompt))
                assert float(looked.gain[at]) == pytest.approx(expected, rel=1e-6, abs=1e-7)
                assert (int(looked.seat[at]), int(looked.position[at])) == (seat, t)


def test_one_request_serves_every_row_and_a_list_only_its_own():
    _, _, _, (entry,) = make([(["all"], None, 3)])
    route, positions = Route(), torch.arange(5)[None]
    route.assign([itinerary(entry)], single=True)
    assert (route.look_up(6, positions, None).slot == entry.slots[0]).all()
    route.assign([itinerary(entry)])
    slots = route.look_up(3, positions, None).slot.view(3, 5)
    assert (slots[0] == entry.slots[0]).all()
    assert (slots[1:] == -1).all()


def test_without_a_prompt_length_all_is_prompt_and_counting_from_its_end_is_an_error():
    _, _, table, (entry,) = make([(["generated", "prompt", Positions(3)], None, 3)])
    one = itinerary(entry)
    assert [added(table, slot) for slot in one.slots] == [4.0, 20.0]
    assert one.starts == (0, 3)
    for select in ("after_prompt", "last_prompt_token", Positions(-2)):
        _, _, _, (entry,) = make([([select], None, 3)])
        with pytest.raises(SteerfastError, match="prompt_lengths"):
            itinerary(entry)
    _, _, _, (entry,) = make([(["all"], Schedule.ramp(0, 5), 3)])
    with pytest.raises(SteerfastError, match="prompt_lengths"):
        itinerary(entry)
    _, _, _, (entry,) = make([([AfterSequence((1, 2))], None, 3)])
    with pytest.raises(SteerfastError, match="prompts="):
        itinerary(entry, 3)
    with pytest.raises(ValueError, match=r"sequence \[1, 2\].*prompt of 3 tokens does not contain"):
        itinerary(entry, 3, [1, 3, 2])


@pytest.mark.parametrize("make_one", ROUTERS)
def test_routers_refuse_what_does_not_fit_and_write_nothing(make_one):
    router, rows = make_one(2), np.full((5, 64), 99, np.int32)
    for arguments, error in (
        (([2], [0], [1]), IndexError),
        (([0], [-1], [1]), ValueError),
        (([0], [0], [-1]), ValueError),
        (([0, 1], [0, 0], [60, 5]), ValueError),
    ):
        with pytest.raises(error):
            router.fill(*arguments, rows)
    assert (rows == 99).all()
    with pytest.raises(IndexError):
        router.set(2, [], [], [], [])
    with pytest.raises(ValueError, match="ascend"):
        router.set(0, [3, 1], [0, 0], [], [])
    with pytest.raises(ValueError, match="a slot for every start"):
        router.set(0, [1], [], [], [])
    with pytest.raises(ValueError, match="at least one seat"):
        make_one(0)
    assert (
        router.fill([-1, 1], [0, 4], [2, 1], rows) == 3
    )  # no seat, and a seat without an itinerary
    assert (rows[SLOT] == -1).all()


def test_buffers_keep_their_memory():
    buffers = RowBuffers()
    pointers = {rows: [line.data_ptr() for line in buffers.at(rows)] for rows in (1, 64, 65, 1000)}
    for rows, before in pointers.items():
        again = buffers.at(rows)
        assert [line.data_ptr() for line in again] == before
        assert {len(line) for line in again} == {rows}
        assert (again.gain == 1).all()


def test_a_staging_buffer_is_written_again_only_after_its_copy():
    """Seven sends through a ring of four, with events that say in which order they were used."""
    said: list[tuple[str, int]] = []

    class Event:
        made = 0

        def __init__(self):
            self.number = Event.made
            Event.made += 1

        def record(self, stream):
            assert stream is None  # there is none on the CPU
            said.append(("record", self.number))

        def synchronize(self):
            said.append(("wait", self.number))

    target = torch.zeros(5, 8, dtype=torch.int32)
    staging = Staging(target, Event)
    for step in range(7):
        staging.send(lambda rows, step=step: rows.__setitem__(slice(None), step))
        assert (target == step).all()
    assert said == [
        *(("record", number) for number in range(4)),
        *(pair for number in range(3) for pair in (("wait", number), ("record", number))),
    ]


def test_events_are_recorded_where_the_copies_run(monkeypatch):
    """On the stream of the target's device, though another one is current."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    streams = []

    class Event:
        def record(self, stream):
            streams.append(stream)

    class OnAnother:
        """As much of a tensor on the second GPU as staging asks for."""

        device, shape, dtype = torch.device("cuda:1"), (5, 8), torch.int32

        def copy_(self, buffer, non_blocking):
            assert non_blocking

    monkeypatch.setattr(
        torch, "empty", lambda shape, dtype, pin_memory: torch.zeros(shape, dtype=dtype)
    )
    Staging(OnAnother(), Event).send(lambda rows: None)
    assert streams == ["stream of cuda:1"]


@pytest.mark.skipif(not COMPILED, reason="the compiled module was not built")
def test_the_compiled_router_is_safe_to_share_between_threads():
    """Python's lock is held: two threads that fill the same router never see half an itinerary."""
    router, wrong = make_router(1), []
    router.set(0, [0], [5], [], [])

    def work(slot):
        rows = np.zeros((5, 64), np.int32)
        for _ in range(300):
            router.set(0, [0], [slot], [], [])
            router.fill([0], [0], [64], rows)
            if len(set(rows[SLOT].tolist())) != 1:
                wrong.append(rows[SLOT].copy())

    threads = [threading.Thread(target=work, args=(slot,)) for slot in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ten_thousand_plans_through_sixty_four_slots_leave_memory_flat():
    import tracemalloc

    table = Table(2, 16, slots=64)
    addresses = [t.data_ptr() for t in (table.records, table.reads, table.bank)]
    held = []

    def through(first, last):
        for number in range(first, last):
            vector = SteeringVector("v", {0: torch.full((16,), 1.0 + number)})
            held.append(table.acquire(steer(vector, 0.5, select="generated")))
            if len(held) > 32:
                table.release(held.pop(0))

    through(0, 8_000)
    tracemalloc.start()  # makes everything four times slower
    through(8_000, 8_500)  # what is held now was traced
    before = tracemalloc.get_traced_memory()[0]
    through(8_500, 10_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 30_000  # 20 bytes a plan
    assert addresses == [t.data_ptr() for t in (table.records, table.reads, table.bank)]
    for entry in held:
        assert added_generated(table, entry) == entry.plan.terms[0].vector.at(0)[0] * 0.5


def added_generated(table, entry):
    return float(table.bank[int(table.records[2, entry.slots[0], 0]), 0])
