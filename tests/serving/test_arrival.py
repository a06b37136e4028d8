"""What arrives in an engine is looked at to the last number: what is out of place is refused, and nobody says who shares."""

from __future__ import annotations

import math
import random
import struct
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import steerfast as sf
from steerfast.errors import SteerfastError
from steerfast.ops.arguments import validate
from steerfast.ops.records import Steering
from steerfast.serving.arrival import arrived, packed_of, way_of
from steerfast.serving.settings import Settings
from steerfast.serving.vllm import admission
from steerfast.serving.wire import WIRE, block_key, prepare, to_wire
from steerfast.table.packing import Cost
from steerfast.table.table import Table

LAYERS, D, ROOM = 3, 8, Cost(6, 24, 8)
A, B = (
    sf.SteeringVector(name, {at: torch.randn(D, generator=rng) for at in range(LAYERS)})
    for seed, name in enumerate("ab")
    if (rng := torch.Generator().manual_seed(seed))
)
PLAN = sf.Plan(
    (
        sf.Term(A, 2.0, select="generated"),
        sf.Term(B, operator="ablate", layers=(1,), gate=sf.Gate("hard", A)),
        sf.Term(A, operator="rotate_by", second=B, angle=0.5, layers=(2,)),
    ),
    schedule=sf.Schedule(((-2, 0.5), (3, 1.5))),
)
PROMPT = [4, 5, 6]


def sent(plan=PLAN):
    return to_wire(prepare(plan), len(PROMPT), PROMPT)


def ints(wire, name):
    return np.frombuffer(wire[name], np.int32).copy()


def changed(name, place, value):
    """With one number of an array as another."""
    numbers = ints(sent(), name)
    numbers[place] = value
    return {name: numbers.tobytes()}


def word(value):
    return struct.unpack("i", struct.pack("f", value))[0]


BAD = {
    "nothing": ([], "other parts"),
    "a part too many": ({"share": "0"}, "other parts"),
    "no number of tokens": ({"prompt": 3.0}, "numbers of tokens"),
    "more phases than any table has": ({"phases": 10**6}, "numbers of tokens and phases"),
    "text for bytes": ({"rows": "x" * 32}, "rows are not whole lines of 8"),
    "half a row": ({"rows": bytes(30)}, "rows are not whole lines of 8"),
    "a site cut short": ({"sites": bytes(16)}, "sites are not whole lines of 5"),
    "NaN in a row": (changed("rows", 3, word(math.nan)), "direction holds NaN"),
    "another phase": (changed("sites", 0, 9), "a site names what is not there"),
    "another layer": (changed("sites", 1, 7), "a site names what is not there"),
    "another finish": (changed("sites", 2, 3), "a site names what is not there"),
    "another row": (changed("sites", 3, 999), "a site names what is not there"),
    "another program": (changed("sites", 4, -2), "a site names what is not there"),
    "a site twice": ({"sites": 2 * sent()["sites"]}, "a site twice"),
    "programs that overlap": (changed("ends", 0, 4), "1 to 16 reads"),
    "another op": (changed("reads", 0, 9), "a read names what is not there"),
    "another source": (changed("reads", 1, 999), "a read names what is not there"),
    "another target": (changed("reads", 2, -2), "a read names what is not there"),
    "a partner of others": (changed("reads", 3, 2), "a read names what is not there"),
    "another gate": (changed("reads", 4, 4), "a read names what is not there"),
    "a key of others": (changed("reads", 5, 16), "a read names what is not there"),
    "infinity": (changed("reads", 8, word(math.inf)), "NaN or infinite"),
    "no course": ({"course": []}, "1 to 64 stretches"),
    "a course back": ({"course": [[0, 0], [0, 1]]}, "does not ascend"),
    "a course through what is not there": ({"course": [[0, 2]]}, "does not ascend"),
    "a course of text": ({"course": ["ab"]}, "no pair"),
    "a schedule back": ({"gains": [[1, 1.0], [1, 2.0]]}, "does not ascend"),
    "a gain of NaN": ({"gains": [[1, math.nan]]}, "no number"),
    "a schedule without end": ({"gains": [[at, 1.0] for at in range(257)]}, "0 to 256 points"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_out_of_place_is_refused(name):
    change, reason = BAD[name]
    wire = sent() | change if isinstance(change, dict) else change
    with pytest.raises(
        ValueError, match=rf"no plan, because .*{reason}.*front end and this engine"
    ):
        arrived(wire, LAYERS, D, ROOM)


@pytest.mark.parametrize("room", [Cost(1, 24, 8), Cost(6, 2, 8), Cost(6, 24, 1)])
def test_what_there_is_no_room_for_is_refused(room):
    arrived(sent(), LAYERS, D, ROOM)
    with pytest.raises(ValueError, match="needs Cost"):
        arrived(sent(), LAYERS, D, room)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_let_in_is_what_kernels_may_see(seed):
    """Any bytes of it changed: refused, or a table in which every number is in its place."""
    chance, in_, out = random.Random(seed), 0, 0
    for _ in range(300):
        wire = sent()
        for _ in range(chance.randrange(1, 3)):
            name = chance.choice(["sites", "reads", "ends", "rows"])
            data = bytearray(wire[name])
            data[chance.randrange(len(data))] = chance.choice([0, 1, 2, 127, 255])
            wire[name] = bytes(data)
        try:
            checked = arrived(wire, LAYERS, D, ROOM)
        except ValueError:
            out += 1
            continue
        in_ += 1
        slots, rows, programs = checked["cost"]
        table = Table(LAYERS, D, slots=slots, bank_rows=rows, programs=programs)
        held = table.hold(checked["share"], partial(packed_of, checked, D))
        slot = torch.tensor([one for one in held.slots if one >= 0], dtype=torch.int32)
        for records in table.site_records:
            validate(Steering(slot, torch.ones(len(slot)), records, table.reads, table.bank))
        assert max(way_of(checked, held.slots).slots) < slots
    assert min(in_, out) > 20


def test_who_shares_follows_from_what_is_sent():
    """The same numbers share, whoever sends them and under whatever name; others do not, whatever else is alike."""
    one = arrived(sent(), LAYERS, D, ROOM)
    other = arrived(sent() | changed("rows", 0, word(0.25)), LAYERS, D, ROOM)
    assert arrived(sent(), LAYERS, D, ROOM)["share"] == one["share"] != other["share"]
    assert block_key(one, 0, 8) != block_key(other, 0, 8)
    halved = arrived(sent() | {"gains": [[-2, 0.25], [3, 0.75]]}, LAYERS, D, ROOM)
    assert halved["share"] == one["share"]
    assert block_key(halved, 0, 8) != block_key(one, 0, 8)


def test_a_row_sent_twice_is_counted_and_held_once():
    wire = sent(sf.steer(A, 1.0, layers=[0, 1]))
    sites = ints(wire, "sites").reshape(-1, 5)
    wire["rows"] = wire["rows"][: 4 * D] * 2
    checked = arrived(wire, LAYERS, D, ROOM)
    assert checked["cost"] == [1, 1, 0]
    table = Table(LAYERS, D, slots=1, bank_rows=1, programs=0)
    table.release(table.hold("it", lambda: packed_of(checked, D)))
    assert table.records[sites[:, 1], 0, 0].tolist() == [0, 0]
    table.acquire(sf.steer(B, 1.0, layers=[0]))  # and given back
    assert torch.equal(table.bank[0], B.at(0))


class Core:
    """An engine core, as far as what arrives is looked at."""

    def __init__(self, monkeypatch, on=True):
        monkeypatch.setattr(admission, "is_on", lambda config: on)
        monkeypatch.setattr(admission, "settings_of", lambda config: Settings())
        text = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=D)
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text))
        self.made = []

    def look(self, wire, tokens=(4, 5, 6), **more):
        params = SimpleNamespace(extra_args=None if wire is None else {WIRE: wire, "other": 1})
        request = SimpleNamespace(sampling_params=params, prompt_token_ids=tokens, **more)
        admission._look(lambda core, request: self.made.append(request), self, request)
        return params.extra_args


def test_a_core_makes_requests_of_what_it_has_looked_at(monkeypatch):
    core, wire = Core(monkeypatch), sent()
    room = Cost(Settings.slots, Settings.rows, Settings.programs)
    assert core.look(wire) == {WIRE: arrived(sent(), LAYERS, D, room), "other": 1}
    assert wire == sent()  # what was sent may be others' too
    assert core.look(None) is None
    embeds = to_wire(prepare(PLAN), 2, None)
    assert core.look(embeds, None, prompt_embeds=torch.zeros(2, D))[WIRE]["prompt"] == 2
    assert len(core.made) == 3


def test_a_core_makes_no_request_of_anything_else(monkeypatch):
    """An exception where vLLM makes requests is an error of that request alone."""
    core = Core(monkeypatch)
    with pytest.raises(ValueError, match="what arrived for a request is no plan"):
        core.look({"digest": "0"})
    with pytest.raises(SteerfastError, match="for a prompt of 3 tokens with one of 4"):
        core.look(sent(), [1, 2, 3, 4])
    with pytest.raises(ValueError, match="it has other parts"):  # once is enough
        core.look(core.look(sent())[WIRE])
    with pytest.raises(SteerfastError, match="was not started to steer"):
        Core(monkeypatch, on=False).look(sent())
    assert len(core.made) == 1
