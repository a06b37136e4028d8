"""A worker's part without an engine: rows get what the plan says, and nothing of a request is left when it has ended."""

from __future__ import annotations

import gc
import random
from types import SimpleNamespace

import pytest
import torch

import steerfast as sf
from steerfast.errors import SteerfastError
from steerfast.serving.arrival import arrived
from steerfast.serving.vllm import worker
from steerfast.serving.wire import WIRE, prepare, to_wire
from steerfast.table import lowering, packing
from steerfast.table.packing import Cost

WIDTH, LAYERS = 8, 3
V = sf.SteeringVector("v", {layer: torch.randn(WIDTH) for layer in range(LAYERS)})
ROOM = Cost(24, 64, 4)
SELECTS = ("all", "prompt", "generated", "last_prompt_token", sf.Positions(3, 9))


@pytest.fixture
def steering(monkeypatch):
    monkeypatch.setattr(worker, "find_llama", lambda model: None)
    monkeypatch.setattr(worker, "steer_norms", lambda *arguments: None)
    config = SimpleNamespace(
        additional_config={"steerfast": {"slots": 24, "rows": 64, "programs": 4}},
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=WIDTH)
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=256, max_num_seqs=16),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=None),
    )
    return worker.Steering(None, config, torch.device("cpu"))


def params(plan, prompt):
    if plan is None:
        return SimpleNamespace(extra_args=None)
    sent = to_wire(prepare(plan), len(prompt), prompt)
    return SimpleNamespace(extra_args={WIRE: arrived(sent, LAYERS, WIDTH, ROOM)})


def delta_of(steering, row, site):
    """What a row of the step adds at a site, [D], times its gain; None where it is not steered."""
    rows = steering.rows.at(row + 1)
    slot = int(rows.slot[row])
    if slot < 0 or int(steering.table.records[site, slot, 0]) < 0:
        return None
    return float(rows.gain[row]) * steering.table.bank[int(steering.table.records[site, slot, 0])]


def test_rows_follow_their_plans(steering):
    """Requests come, are read in chunks of any size, decode, are preempted and computed anew, and go."""
    chance, site = random.Random(3), 2 * 1 + 2  # resid_post of layer 1
    live, count = {}, 0
    for _ in range(400):
        if len(live) < 12 and chance.random() < 0.6:
            prompt = [chance.randrange(50) for _ in range(chance.randrange(1, 30))]
            plan = None
            if chance.random() < 0.8:
                ramp = sf.Schedule.ramp(-3, 4) if chance.random() < 0.3 else None
                coefficient, select = chance.choice((1.0, -2.0, 3.0)), chance.choice(SELECTS)
                plan = sf.steer(V, coefficient, layers=[1], select=select, schedule=ramp)
            name = f"r{count}"
            count += 1
            steering.admit(name, params(plan, prompt))
            live[name] = [plan, prompt, 0]
        step = chance.sample(sorted(live), chance.randrange(1, len(live) + 1)) if live else []
        spans = []
        for name in step:
            if chance.random() < 0.05:
                live[name][2] = 0  # preempted: from the start again
            spans.append((name, live[name][2], chance.randrange(1, 9)))
            live[name][2] += spans[-1][2]
        if step:
            steering.route(*map(list, zip(*spans, strict=True)))
        row = 0
        for name, first, length in spans:
            plan, prompt, _ = live[name]
            for position in range(first, first + length):
                got, wanted = delta_of(steering, row, site), expected(plan, prompt, position)
                if wanted is None:
                    assert got is None or not got.any()
                else:
                    torch.testing.assert_close(got, wanted)
                row += 1
        # Whatever the model sees behind them is not steered.
        assert (steering.rows.at(256).slot[row:] == -1).all()
        for name in [name for name in live if chance.random() < 0.1]:
            steering.forget([name])
            del live[name]
    steering.forget(list(live))
    assert steering.status()["slots_in_use"] == steering.status()["requests"] == 0


def expected(plan, prompt, position):
    """From the plan's own words: selector by selector."""
    if plan is None:
        return None
    [term], end = plan.terms, len(prompt)
    inside = {
        "all": True,
        "prompt": position < end,
        "generated": position >= end,
        "last_prompt_token": position == end - 1,
    }.get(term.select if isinstance(term.select, str) else "", 3 <= position < 9)
    gain = 1.0 if plan.schedule is None else plan.schedule.at(position - end)
    return gain * term.coefficient * V.at(1) if inside and gain else None


def test_nothing_is_left_of_a_request(steering):
    """Objects, counted: as many after five thousand requests with a plan each as after five hundred."""

    def serve(first, last):
        for number in range(first, last):
            prompt = list(range(number % 20 + 1))
            plan = sf.steer(V, 1.0 + number / 1000, layers=[number % LAYERS])
            steering.admit(f"{number}", params(plan, prompt))
            steering.route([f"{number}"], [0], [len(prompt)])
            steering.forget([f"{number}"])
        gc.collect()
        return len(gc.get_objects())

    before = serve(0, 500)
    assert serve(500, 2500) - before < 200


def test_a_step_copies_and_computes_nothing(steering, monkeypatch):
    """Neither lowered nor packed, and what is in the table is not even looked at."""
    plans = [
        sf.steer(V, 2.0, layers=[1]),
        sf.steer(V, operator="ablate"),
        sf.steer(V, 2, layers=[1]),
    ]
    sent = [params(plan, [1, 2, 3]) for plan in plans]
    for owner, name in ((lowering, "lower"), (lowering, "_site"), (packing, "pack")):
        monkeypatch.setattr(owner, name, None)
    for name, one in enumerate(sent[:2]):
        steering.admit(f"{name}", one)
    monkeypatch.setattr(worker, "packed_of", lambda *given: 1 // 0)
    steering.admit("again", sent[2])
    assert steering.table.slots_in_use == 2
    unit = V.at(2) / V.at(2).norm()
    steering.route(["0", "1"], [0, 0], [1, 1])
    torch.testing.assert_close(delta_of(steering, 0, site=4), 2.0 * V.at(1))
    program = int(steering.table.records[2 * 2 + 2, int(steering.rows.at(2).slot[1]), 2])
    source = int(steering.table.reads[program, 0, 1])
    torch.testing.assert_close(steering.table.bank[source], unit)


def test_a_request_that_nobody_announced_is_not_served(steering):
    with pytest.raises(SteerfastError, match="was not admitted"):
        steering.route(["stranger"], [0], [3])


def test_twice_is_once(steering):
    """The second runner adds a preempted request again."""
    prompt, plan = [1, 2, 3], sf.steer(V, 1.0, layers=[1])
    for _ in range(2):
        steering.admit("r", params(plan, prompt))
    assert steering.table.slots_in_use == 1
    for _ in range(2):
        steering.forget(["r"])
    assert steering.table.slots_in_use == 0
