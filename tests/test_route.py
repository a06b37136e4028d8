"""Route: slots by absolute position, against a loop in plain Python."""

from __future__ import annotations

import pytest
import torch

from steerfast import SteeringVector, steer
from steerfast.route import Route
from steerfast.table import Table

VECTOR = SteeringVector("v", {0: torch.ones(4)})


@pytest.fixture
def entries():
    table = Table(1, 4)
    selects = ("all", "prompt", "generated")
    return [None, *(table.acquire(steer(VECTOR, k + 1.0, select=s)) for k, s in enumerate(selects))]


def expected(entry, select, position, real, prompt_length):
    if entry is None or not real:
        return -1
    inside = {
        "all": True,
        "prompt": position < prompt_length,
        "generated": position >= prompt_length,
    }
    if not inside[select]:
        return -1
    return next(slot for slot in entry.slots if slot != -1)


@pytest.mark.parametrize("each", [1, 3])
def test_slots_by_position_padding_and_request(entries, each):
    route, selects = Route(), (None, "all", "prompt", "generated")
    route.assign(entries)
    batch, length = 4 * each, 7
    generator = torch.Generator().manual_seed(0)
    pads = torch.randint(0, 4, (batch,), generator=generator)
    lengths = torch.randint(1, 5, (batch,), generator=generator)
    real = (torch.arange(length) >= pads[:, None]).long()
    positions = real.cumsum(-1) - 1
    got = route.slots(batch, positions, real, lengths)
    for row in range(batch):
        for column in range(length):
            which = row // each
            wanted = expected(
                entries[which],
                selects[which],
                int(positions[row, column]),
                real[row, column],
                int(lengths[row]),
            )
            assert got[row, column] == wanted, (row, column)


def test_one_request_for_any_batch_and_no_prompt_lengths(entries):
    route = Route()
    positions = torch.arange(5)[None]
    for entry, wanted in (
        (entries[1], entries[1].slots[0]),
        (entries[2], entries[2].slots[0]),
        (entries[3], -1),
    ):
        route.assign([entry])
        assert (route.slots(6, positions, None, None) == wanted).all()
    route.assign([None])
    assert (route.slots(2, positions, None, None) == -1).all()


def test_buffers_keep_their_memory():
    route = Route()
    pointers = {rows: [t.data_ptr() for t in route.buffers(rows)] for rows in (1, 64, 65, 1000)}
    for rows, (slot, gain) in pointers.items():
        again = route.buffers(rows)
        assert [t.data_ptr() for t in again] == [slot, gain]
        assert [len(t) for t in again] == [rows, rows]
        assert (again[1] == 1).all()
