"""A step's rows stand at one address and are those of its requests, however found; whatever is behind them is not steered."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steerfast.errors import SteerfastError
from steerfast.routing.itinerary import Itinerary
from steerfast.routing.route import Rows
from steerfast.routing.router import BASE, GAIN, NO_SEAT, POSITION, SEAT, SLOT, make_router
from steerfast.serving.vllm.device_route import DeviceRoute
from steerfast.serving.vllm.rows import FixedRows
from steerfast.serving.vllm.runner_v2 import attach, route

SEATS = 6


def step(chance, size):
    """{line: its values} of a step in which every row is steered."""
    ints = {line: [chance.randrange(9) for _ in range(size)] for line in (SLOT, SEAT, POSITION)}
    return ints | {line: [chance.random() for _ in range(size)] for line in (GAIN, BASE)}


def fill(buffers, wanted):
    """As a router does: all of what it is given, in which rows beyond the step's are not steered."""
    size = len(wanted[SLOT])

    def write(lines):
        assert lines.shape[1] >= size
        lines[:] = np.array([[-1], [0], [-1], [0], [0]])
        for line in (SLOT, SEAT, POSITION):
            lines[line, :size] = wanted[line]
        for line in (GAIN, BASE):
            lines[line].view(np.float32)[:size] = wanted[line]

    return buffers.fill(size, write)


def put(buffers, wanted):
    kinds = {SLOT: torch.int32, GAIN: torch.float32, BASE: torch.float32}
    values = [torch.tensor(wanted[n], dtype=kinds.get(n, torch.int32)) for n in range(5)]
    buffers.put(Rows(*values))
    return buffers.at(len(values[0]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("capacity", [1, 5, 64, 300])
def test_rows_of_a_step_and_nothing_else(capacity, seed):
    """Steps of sizes that grow and shrink, from the host, from the device, and none."""
    chance, buffers = random.Random(seed), FixedRows(capacity)
    assert buffers.capacity >= capacity
    every = buffers.at(buffers.capacity)
    addresses = [line.data_ptr() for line in every]
    assert (every.slot == -1).all()
    for _ in range(40):
        size = chance.choice([0, 1, capacity, chance.randrange(capacity + 1)])
        wanted, how = step(chance, size), chance.choice([fill, put, None])
        if how is None:
            buffers.clear()
            assert (every.slot == -1).all()
            continue
        here = how(buffers, wanted)
        for line, values in enumerate(here):
            assert values.tolist() == pytest.approx(wanted[line])
        if size:
            assert [line.data_ptr() for line in here] == addresses
        assert every.slot.tolist() == wanted[SLOT] + [-1] * (buffers.capacity - size)
    assert [line.data_ptr() for line in buffers.at(buffers.capacity)] == addresses


def test_a_step_that_steers_nobody_leaves_nothing_behind():
    buffers = FixedRows(64)
    fill(buffers, step(random.Random(0), 10))
    assert (buffers.unsteered(2).slot == -1).all()
    assert (buffers.at(64).slot == -1).all()


def some_itinerary(chance):
    """Up to six stretches, and a schedule of up to eight points, or none."""
    starts = sorted(chance.sample(range(40), chance.randrange(7)))
    at = sorted(chance.sample(range(-10, 50), chance.choice([0, 0, 1, 2, 8])))
    return Itinerary(
        tuple(starts),
        tuple(chance.randrange(-1, 20) for _ in starts),
        tuple(at),
        tuple(chance.uniform(-2, 2) for _ in at),
    )


def routed(itineraries, spans):
    """{line: values} by the router on the host; spans: [(seat, first position, count)]."""
    router, lines = make_router(SEATS), np.zeros((5, 256), np.int32)
    for seat, one in itineraries.items():
        router.set(seat, *map(list, one))
    count = router.fill(*(np.array(part) for part in zip(*spans, strict=True)), lines)
    floats = {line: lines[line, :count].view(np.float32).tolist() for line in (GAIN, BASE)}
    return {line: lines[line, :count].tolist() for line in (SLOT, SEAT, POSITION)} | floats


def check(rows, wanted):
    """Gains of rows that belong to nobody do not matter."""
    for line in (SLOT, SEAT, POSITION):
        assert rows[line].tolist() == wanted[line]
    owned = np.array(wanted[SEAT]) >= 0
    for line in (GAIN, BASE):
        assert rows[line].numpy()[owned] == pytest.approx(np.array(wanted[line])[owned], abs=1e-6)
    assert [line.dtype for line in rows] == [
        torch.int32 if n in (0, 2, 3) else torch.float32 for n in range(5)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_device_finds_what_the_host_finds(seed):
    """Also when seats were used before, and when there are more of them than at first."""
    chance = random.Random(seed)
    device, one_by_one = DeviceRoute(seats=2), {}
    for _ in range(12):
        seat = chance.randrange(SEATS)
        if seat >= device.seats:
            device = device.grown(SEATS)
        one_by_one[seat] = some_itinerary(chance)
        device.set(seat, one_by_one[seat])
    spans = [
        (chance.choice([NO_SEAT, *one_by_one]), chance.randrange(60), chance.randrange(12))
        for _ in range(8)
    ]
    seats = torch.tensor([seat for seat, _, count in spans for _ in range(count)])
    positions = torch.tensor([at for _, first, n in spans for at in range(first, first + n)])
    wanted = routed(one_by_one, spans)
    check(device.rows(seats, positions, True), wanted)
    plain = {seat: one._replace(gain_at=(), gains=()) for seat, one in one_by_one.items()}
    check(device.rows(seats, positions, False), routed(plain, spans))


class Engine:
    """What ``route`` needs of a worker: who was announced, where, and the rows that it fills."""

    def __init__(self, itineraries):
        self.requests = {f"request {seat}" for seat in itineraries}
        self.rows, self.device_route = FixedRows(256), DeviceRoute(seats=SEATS)
        for seat, one in itineraries.items():
            self.device_route.set(seat, one)
        self.seat_of_index = torch.full((9,), NO_SEAT)
        fill(self.rows, step(random.Random(0), 256))  # a step before

    def route_on_device(self, seats, positions):
        self.rows.put(self.device_route.rows(seats, positions, True))


def make_batch(chance, engine, order):
    """A batch of the requests in these seats, and its spans; their indices in the runner are anyhow, rows of padding behind."""
    counts = [chance.randrange(9) for _ in order]
    first = [chance.randrange(40) for _ in order]
    indices = chance.sample(range(9), len(order))
    for seat, index in zip(order, indices, strict=True):
        engine.seat_of_index[index] = seat
    total, padding = sum(counts), chance.randrange(9)
    ends = np.cumsum([0, *counts]).tolist()
    positions = [at for one, n in zip(first, counts, strict=True) for at in range(one, one + n)]
    return SimpleNamespace(
        req_ids=[f"request {seat}" for seat in order],
        num_reqs=len(order),
        num_tokens_after_padding=total + padding,
        query_start_loc=torch.tensor([*ends, *[total + 7] * 3], dtype=torch.int32),
        idx_mapping=torch.tensor([*indices, 0, 0], dtype=torch.int32),
        positions=torch.tensor([*positions, *[3] * (padding + 5)]),
        is_padding=torch.tensor([False] * total + [chance.random() < 0.5] * (padding + 5)),
    ), list(zip(order, first, counts, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_is_routed_by_its_requests_and_its_padding_by_none(seed):
    chance = random.Random(seed)
    itineraries = {seat: some_itinerary(chance) for seat in range(SEATS)}
    engine = Engine(itineraries)
    order = chance.sample(range(SEATS), chance.randrange(1, SEATS + 1))
    batch, spans = make_batch(chance, engine, order)
    size = sum(count for _, _, count in spans)
    if seed % 2 and size:  # a row of padding among the others
        hole = chance.randrange(size)
        batch.is_padding[hole] = True
    route(engine, batch)
    wanted = routed(itineraries, spans)
    if seed % 2 and size:
        wanted[SLOT][hole] = wanted[SEAT][hole] = -1
    check(engine.rows.at(size), wanted)
    assert (engine.rows.at(256).slot[size:] == -1).all()
    assert (engine.rows.at(batch.num_tokens_after_padding).seat[size:] == -1).all()


INVENTED = ["req_0_" + 32 * "a", "req_17_0123abcd-0123-4567-89ab-0123456789ab"]
STRANGE = ["request 99", "req_0", "req_x_" + 32 * "a", "req_0_" + 31 * "a", INVENTED[0] + "a"]


@pytest.fixture
def engine():
    return Engine({seat: Itinerary((0,), (seat,)) for seat in range(SEATS)})


def test_a_batch_that_the_engine_invents_is_not_steered(engine):
    batch, _ = make_batch(random.Random(1), engine, [0, 1])
    batch.req_ids = INVENTED
    route(engine, batch)
    assert (engine.rows.at(256).slot == -1).all()


@pytest.mark.parametrize("name", [*STRANGE, INVENTED[0]])
def test_a_request_that_nobody_announced_is_an_error(name, engine):
    """An invented name, too, in a batch of others; among invented ones, a strange one."""
    batch, _ = make_batch(random.Random(1), engine, [0, 1])
    others = ["request 0"] if name in INVENTED else ["request 0", *INVENTED]
    for other in others:
        for batch.req_ids in ([name, other], [other, name]):
            with pytest.raises(SteerfastError, match=f"'{name}' is in a batch, but was never"):
                route(engine, batch)


def test_rows_are_filled_before_the_runner_prepares_a_forward(engine):
    """And are cleared for a dummy one; both hand on what the runner made."""

    class State:
        max_num_reqs, device = 9, torch.device("cpu")

        def prepare_inputs(self, batch, states):
            return "inputs", states, engine.rows.at(256).slot.tolist()

        def prepare_dummy_inputs(self, requests, tokens):
            return "dummy", requests, tokens, engine.rows.at(256).slot.tolist()

    state = State()
    attach(state, engine)
    assert engine.seat_of_index.tolist() == [NO_SEAT] * 9
    batch, [(seat, _, count)] = make_batch(random.Random(3), engine, [4])
    assert count
    slots = [seat] * count + [-1] * (256 - count)
    assert state.prepare_inputs(batch, "states") == ("inputs", "states", slots)
    assert state.prepare_dummy_inputs(2, 3) == ("dummy", 2, 3, [-1] * 256)
