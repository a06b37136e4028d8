"""What goes over the wire with a request, and the keys that tell its cache blocks apart."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_plans import MARK
from random_plans import plan as random_plan

import steerfast as sf
from steerfast.plans.sites import site_index
from steerfast.routing.itinerary import itinerary
from steerfast.serving.arrival import arrived, packed_of, way_of
from steerfast.serving.wire import block_key, prepare, to_wire
from steerfast.table.lowering import lower
from steerfast.table.packing import Cost, pack
from steerfast.table.table import Table

V = sf.SteeringVector("v", {layer: torch.randn(8) for layer in range(4)}, {1: 2.0})
BLOCK, ROOM = 8, Cost(512, 4096, 1024)


def wire_of(plan, prompt):
    """As the engine core has it."""
    sent = to_wire(prepare(plan), len(prompt), prompt)
    return arrived(sent, max(plan.layers) + 1, plan.hidden_size, ROOM)


def any_plan(chance, tokens):
    plan = None
    while plan is None or prepare(replace(plan, condition=None)) is None:
        plan = random_plan(chance, tokens)
    return replace(plan, condition=None)


@pytest.mark.parametrize("seed", range(25))
def test_a_worker_gets_the_table_that_the_plan_itself_makes(seed):
    """Every tensor of it, bit by bit, and the same way through the prompt."""
    chance = random.Random(seed)
    prompt = [3, *MARK, 4, 5]
    plan = any_plan(chance, prompt)
    wire = wire_of(plan, prompt)
    size = {"slots": 64, "bank_rows": 200, "programs": 64}
    here, there = (Table(3, plan.hidden_size, **size) for _ in range(2))
    held = here.hold(wire["share"], lambda: packed_of(wire, plan.hidden_size))
    entry = there.acquire(plan, lower(plan).along({"start": 0, "prompt_end": 5, MARK: 2}))
    for name in ("records", "reads", "bank"):
        assert torch.equal(getattr(here, name), getattr(there, name)), name
    assert way_of(wire, held.slots) == itinerary(entry, len(prompt), prompt)


def test_only_what_is_used_is_sent():
    wide = sf.SteeringVector("wide", {layer: torch.randn(512) for layer in range(32)})
    prompt = [1, 2, 3]
    one = to_wire(prepare(sf.steer(wide, 2.0, layers=[5])), 3, prompt)
    assert len(one["rows"]) == 4 * 512
    assert len(repr({**one, "rows": b""})) < 500


def test_what_was_prepared_is_kept_and_made_anew_if_it_was_not(monkeypatch):
    made, plan = [], sf.steer(V, 2.0, layers=[1])

    def check(part):
        made.append(part)
        return pack(plan, part.phases)

    prepared = prepare(plan, check)
    one = to_wire(prepared, 3, [1, 2, 3])
    assert to_wire(prepared, 3, [1, 2, 3]) == one
    assert len(made) == 1
    prepared._parts.room = 0
    prepared._parts.put("another", {}, 1)
    assert to_wire(prepared, 3, [1, 2, 3]) == one
    assert len(made) == 2


def test_a_condition_is_refused():
    condition = sf.Condition(sf.Test("probe", V, layer=0))
    with pytest.raises(ValueError, match="cannot decide conditions"):
        prepare(sf.steer(V, 1.0, layers=[2], condition=condition))


def test_a_plan_that_never_acts_is_no_plan():
    assert prepare(sf.steer(V, 0.0, layers=[1])) is None


def test_it_is_data():
    plan = sf.steer(V, 1.0, layers=[1], select="generated", schedule=sf.Schedule.ramp(0, 4))
    wire = to_wire(prepare(plan), 5, list(range(5)))
    assert wire.pop("rows") == V.at(1).numpy().tobytes()
    sites = np.frombuffer(wire.pop("sites"), np.int32).tolist()
    assert sites == [0, site_index("resid_post", 1), 0, 0, -1]
    assert (wire.pop("reads"), wire.pop("ends")) == (b"", b"")
    assert json.loads(json.dumps(wire)) == wire
    gains = [[0, 0.0], [4, 1.0]]
    assert wire == {"phases": 1, "course": [[0, -1], [5, 0]], "gains": gains, "prompt": 5}
    assert wire_of(plan, list(range(5)))["cost"] == [1, 1, 0]


def steered(plan, lowered, prompt, count):
    """(phase's content, gain) of each position, or None: from the plan itself, without a course."""
    places = {"start": 0, "prompt_end": len(prompt)}
    for sequence in lowered.sequences:
        ends = [
            at
            for at in range(len(sequence), len(prompt) + 1)
            if tuple(prompt[at - len(sequence) : at]) == sequence
        ]
        places[sequence] = ends[-1] - 1
    digest = plan.digest

    def at(position):
        state = tuple(
            sum(places[origin] + offset <= position for offset in offsets)
            for origin, offsets in zip(lowered.origins, lowered.offsets, strict=True)
        )
        phase = lowered.phase_of[state]
        if phase < 0 or not lowered.phases[phase].sites:
            return None
        gain = 1.0 if plan.schedule is None else plan.schedule.at(position - len(prompt))
        return digest, phase, gain

    return [at(position) for position in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_equal_keys_mean_equal_steering(seed):
    """Two requests whose tokens and keys agree as far as a block were steered alike at every position of it."""
    chance = random.Random(seed)
    tokens = [chance.randrange(1, 20) for _ in range(64)]
    tokens[5:7] = MARK
    blocks = [slice(start, start + BLOCK) for start in range(0, 64, BLOCK)]
    requests = []  # (steering of every position, key of every block)
    for plan in [any_plan(chance, tokens[:20]) for _ in range(2)]:
        prepared, lowered = prepare(plan), lower(plan)
        for length in chance.sample(range(1, 60), 6):
            prompt = tokens[:length]
            try:
                wire = arrived(to_wire(prepared, length, prompt), 3, plan.hidden_size, ROOM)
            except ValueError:  # a sequence that is not in this prompt
                continue
            keys = [block_key(wire, block.start, block.stop) for block in blocks]
            requests.append((steered(plan, lowered, prompt, 64), keys))
    for steering, keys in requests:
        assert [key is not None for key in keys] == [any(steering[block]) for block in blocks]
    for (steering, keys), (others, other_keys) in itertools.combinations(requests, 2):
        for block, key, other in zip(blocks, keys, other_keys, strict=True):
            if key != other:
                break
            assert steering[block] == others[block]


def test_keys_are_shared_as_far_as_steering_is():
    prompt = list(range(30))
    everything, generated = (
        sf.steer(V, 1.0, layers=[1], select=name) for name in ("all", "generated")
    )
    long, short = wire_of(everything, prompt), wire_of(everything, prompt[:20])
    assert [block_key(long, at, at + 8) for at in (0, 8)] == [
        block_key(short, at, at + 8) for at in (0, 8)
    ]
    wire = wire_of(generated, prompt)
    assert [block_key(wire, at, at + 8) for at in (0, 8, 16)] == [None] * 3
    assert block_key(wire, 24, 32) != block_key(wire, 32, 40) != None  # noqa: E711
    assert block_key(wire, 32, 40) == block_key(wire, 40, 48)


def test_a_sequence_must_be_in_the_prompt():
    plan = sf.steer(V, 1.0, layers=[1], select=sf.AfterSequence((7, 8)))
    assert wire_of(plan, [1, 7, 8, 2])["course"] == [[0, -1], [2, 0]]
    with pytest.raises(ValueError, match="does not contain"):
        wire_of(plan, [1, 2, 3])
    with pytest.raises(ValueError, match="embeddings"):
        to_wire(prepare(plan), 4, None)


def test_what_a_plan_has_for_itself_of_a_positional_vector_is_counted():
    rows = sf.SteeringVector("rows", {layer: torch.randn(30, 64) for layer in range(4)})
    one = prepare(sf.steer(rows, 1.0, layers=[2], select=sf.First(3)))
    assert one.size >= 4 * 30 * 4 * 64
    assert prepare(sf.steer(V, 1.0, layers=[1])).size < 4000
