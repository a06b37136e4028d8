"""Table: sharing, reuse, fullness, fixed addresses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerfast import SteerfastError, SteeringVector, steer
from steerfast.plans.sites import site_index
from steerfast.table.table import Table


def vector(seed=0, size=8, layers=3):
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(
        "v", {layer: torch.randn(size, generator=generator) for layer in range(layers)}
    )


def delta(table, entry, layer, phase=0):
    row = table.records[site_index("resid_post", layer), entry.slots[phase], 0]
    return table.bank[row]


def test_a_plan_lands_in_the_bank():
    table = Table(3, 8, slots=4)
    entry = table.acquire(steer(vector(), 2.0, layers=[1], finish="shrink"))
    assert torch.equal(delta(table, entry, 1), 2 * vector().at(1))
    assert table.records[site_index("resid_post", 1), entry.slots[0], 1] == 2
    assert (table.records[:, :, 0] >= 0).sum() == 1


def test_equal_plans_share_and_idle_plans_stay():
    table = Table(3, 8, slots=4)
    first = table.acquire(steer(vector(), 2.0))
    assert table.acquire(steer(vector(), 2)) is first
    assert first.holders == 2
    table.release(first)
    table.release(first)
    assert table.acquire(steer(vector(), 2.0)) is first
    assert table.version == 1


def test_the_least_recently_used_idle_plan_makes_room():
    table = Table(3, 8, slots=2, bank_rows=100)
    plans = [steer(vector(seed), layers=[0]) for seed in range(4)]
    old, kept = table.acquire(plans[0]), table.acquire(plans[1])
    table.release(old)
    third = table.acquire(plans[2])
    assert third.slots == old.slots
    assert {entry.plan for entry in table.entries} == {plans[1], plans[2]}
    assert torch.equal(delta(table, kept, 0), vector(1).at(0))
    with pytest.raises(SteerfastError, match=r"table is full.*slots=2"):
        table.acquire(plans[3])
    assert {entry.plan for entry in table.entries} == {plans[1], plans[2]}


def test_bank_rows_run_out_too_and_a_plan_gets_all_or_nothing():
    table = Table(3, 8, slots=8, bank_rows=4)
    held = table.acquire(steer(vector(), layers=[0, 1, 2]))
    with pytest.raises(SteerfastError, match="bank_rows=4"):
        table.acquire(steer(vector(1), layers=[0, 1]))
    table.release(held)
    table.acquire(steer(vector(1), layers=[0, 1]))
    assert (table.records[:, :, 0] >= 0).sum() == 2


def test_many_plans_through_few_slots_change_no_address():
    table = Table(3, 8, slots=4)
    addresses = table.records.data_ptr(), table.bank.data_ptr()
    for seed in range(200):
        entry = table.acquire(steer(vector(seed), layers=[seed % 3], select="generated"))
        assert len(entry.slots) == 1  # nothing in the prompt: no slot taken
        assert torch.equal(delta(table, entry, seed % 3), vector(seed).at(seed % 3))
        table.release(entry)
    assert addresses == (table.records.data_ptr(), table.bank.data_ptr())
    assert len(table.entries) <= 4


def test_the_last_use_of_a_slot_is_marked_on_the_stream_of_the_tables_device(monkeypatch):
    """A later writer waits for it there; the current device may be another."""
    streams = []

    class Event:
        def record(self, stream):
            streams.append(("recorded", stream))

    class Stream:
        def __init__(self, device):
            self.device = device

        def __eq__(self, other):
            return self.device == other.device

        def wait_event(self, event):
            streams.append(("waited", self))

    class OnTheSecondGpu(Table):
        device = torch.device("cuda:1")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    table = OnTheSecondGpu(3, 8, slots=1)
    table.release(table.acquire(steer(vector())))
    table.acquire(steer(vector(1)))
    there = Stream(torch.device("cuda:1"))
    assert streams == [("recorded", there), ("waited", there)]


def test_writable_in_and_out_of_inference_mode():
    with torch.inference_mode():
        table = Table(3, 8, slots=1)
        table.release(table.acquire(steer(vector())))
    table.acquire(steer(vector(1)))


def test_what_does_not_fit():
    table = Table(3, 8)
    with pytest.raises(ValueError, match=r"plan names layer 3, but this model has layers 0\.\.2"):
        table.acquire(steer(vector(layers=4)))
    with pytest.raises(ValueError, match="hidden size 9, but this model has 8"):
        table.acquire(steer(vector(size=9)))
    assert not table.entries


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"slots": 0}, ValueError, "at least one slot, got slots=0"),
        ({"slots": True}, TypeError, "slots is an integer, got True"),
        ({"slots": 2.0}, TypeError, "slots is an integer"),
        ({"bank_rows": 0}, ValueError, "at least one bank row, got bank_rows=0"),
        ({"bank_rows": -1}, ValueError, "at least one bank row, got bank_rows=-1"),
        ({"bank_rows": "4"}, TypeError, "bank_rows is an integer"),
        ({"programs": -1}, ValueError, "at least 0 programs, got programs=-1"),
        ({"programs": False}, TypeError, "programs is an integer"),
    ],
)
def test_sizes_that_no_table_has(given, error, message):
    with pytest.raises(error, match=message):
        Table(3, 8, **given)
    assert Table(3, 8, slots=np.int64(2), bank_rows=1, programs=0).room == (2, 1, 0)
