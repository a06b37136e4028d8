"""What goes over the wire with a request, and the keys that tell its cache blocks apart."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from random_plans import MARK
from random_plans import plan as random_plan

import steerfast as sf
from steerfast.serving.wire import block_key, from_wire, prepare, to_wire
from steerfast.table.lowering import lower

V = sf.SteeringVector("v", {layer: torch.randn(8) for layer in range(4)}, {1: 2.0})
BLOCK = 8


def wire_of(plan, prompt):
    return to_wire(prepare(plan), len(prompt), prompt)


@pytest.mark.parametrize("seed", range(25))
def test_a_plan_arrives_as_it_was(seed):
    """With only the directions that it uses, by the same digest, in plain JSON."""
    chance = random.Random(seed)
    plan = prepared = None
    while prepared is None:
        plan = random_plan(chance, [3, *MARK, 4, 5])
        prepared = plan and prepare(plan)
    arrived = from_wire(vars(prepared) | {"plan": prepared.text})
    assert arrived.digest == plan.digest
    for one, other in zip(lower(arrived).phases, lower(plan).phases, strict=True):
        assert one.sites.keys() == other.sites.keys()
        for site, steering in one.sites.items():
            delta = other.sites[site].delta
            assert delta is None if steering.delta is None else torch.equal(steering.delta, delta)


def test_only_what_is_used_is_sent():
    wide = sf.SteeringVector("wide", {layer: torch.randn(512) for layer in range(32)})
    one = prepare(sf.steer(wide, 2.0, layers=[5]))
    assert len(one.text) + len(one.vectors) < 4000


def test_a_plan_that_never_acts_is_no_plan():
    assert prepare(sf.steer(V, 0.0, layers=[1])) is None


def test_it_is_data():
    wire = wire_of(sf.steer(V, 1.0, layers=[1], select="generated"), list(range(5)))
    assert json.loads(json.dumps(wire)) == wire
    assert wire["course"] == [[0, -1], [5, 0]]
    assert wire["cost"] == [1, 1, 0]


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
    verdict = None if plan.condition is None else (plan.condition.digest, tuple(prompt))
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
        return digest, phase, gain, verdict

    return [at(position) for position in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_equal_keys_mean_equal_steering(seed):
    """Two requests whose tokens and keys agree as far as a block were steered alike at every position of it."""
    chance = random.Random(seed)
    tokens = [chance.randrange(1, 20) for _ in range(64)]
    tokens[5:7] = MARK
    blocks = [slice(start, start + BLOCK) for start in range(0, 64, BLOCK)]
    requests = []  # (steering of every position, key of every block)
    for plan in [random_plan(chance, tokens[:20]) for _ in range(2)]:
        prepared = plan and prepare(plan)
        if prepared is None:
            continue
        lowered = lower(plan)
        for length in chance.sample(range(1, 60), 6):
            prompt = tokens[:length]
            try:
                wire = to_wire(prepared, length, prompt)
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
