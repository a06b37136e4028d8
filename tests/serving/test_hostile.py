"""A server among strangers: its event loop reads nothing, nothing is read twice or kept, and whoever is short is next."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import threading
import types
from types import SimpleNamespace

import pytest
import torch

import steerfast as sf
from harness import hostile
from steerfast.serving import reader as reading
from steerfast.serving.arrival import arrived
from steerfast.serving.aside import Aside
from steerfast.serving.reader import PlanReader
from steerfast.serving.settings import Settings
from steerfast.serving.vllm import ahead, arming, front
from steerfast.serving.wire import FIELD, WIRE, to_wire
from steerfast.table import lowering
from steerfast.table.packing import Cost

LAYERS, D = 4, 16
PROMPT = list(range(100, 140))
V = sf.SteeringVector(
    "joy", {at: torch.randn(D) for at in range(LAYERS)}, dict.fromkeys(range(LAYERS), 4.0)
)
HONEST = json.dumps({"terms": [{"vector": "joy", "layers": [1]}]})


class Refused(Exception):
    """Stands in for vLLM's."""

    def __init__(self, text, parameter):
        super().__init__(text)


class Server:
    """The front end of a server, with what vLLM calls on its event loop, in vLLM's order; the engine takes every request."""

    def __init__(self, monkeypatch, **settings):
        module = types.ModuleType("vllm.exceptions")
        module.VLLMValidationError = Refused
        monkeypatch.setitem(sys.modules, "vllm.exceptions", module)
        monkeypatch.setattr(front, "_every", set())
        monkeypatch.setattr(front, "obstacle", lambda config: None)
        monkeypatch.setattr(front, "is_on", lambda config: True)
        monkeypatch.setattr(arming, "is_on", lambda config: False)
        monkeypatch.setattr(front, "settings_of", lambda config: Settings(**settings))
        text = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=D)
        self.front = front.Front(SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text)))
        self.front.reader.catalogue.put("joy", V)
        self.reader, self.processor = self.front.reader, SimpleNamespace(steerfast=self.front)
        self.engine = SimpleNamespace(input_processor=self.processor, vllm_config=None)

    async def ask(self, value, prompt=PROMPT):
        """The wire form of a request, or Refused."""
        request = SimpleNamespace(vllm_xargs={FIELD: value})
        return await ahead._create(self._create, None, request, prompt)

    async def _create(self, serving, request, prompt):
        params = SimpleNamespace(extra_args=request.vllm_xargs)
        front._verify(lambda params: None, params)
        await asyncio.sleep(0)
        prompt = {"type": "token", "prompt_token_ids": prompt}
        return await ahead._add(self._add, self.engine, "name", prompt, params)

    async def _add(self, engine, name, prompt, params):
        made = SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args=params.extra_args),
            prompt_token_ids=prompt["prompt_token_ids"],
            prompt_embeds=None,
            resumable=False,
        )
        request = front._process(lambda *args: made, engine.input_processor)
        return request.sampling_params.extra_args.get(WIRE)


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


@pytest.fixture
def work(monkeypatch):
    """(thread, what) of everything that is done to a plan."""
    done = []
    for owner, name in (
        (PlanReader, "_plan"),
        (PlanReader, "_checked"),
        (reading, "pack"),
        (front, "to_wire"),
    ):
        own = getattr(owner, name)

        def noted(*args, _own=own, _name=name):
            done.append((threading.current_thread(), _name))
            return _own(*args)

        monkeypatch.setattr(owner, name, noted)
    return done


def test_the_event_loop_reads_nothing(server, work):
    """Neither what is refused, nor what runs; and each is what a reader alone makes of it."""
    wanted = to_wire(
        PlanReader(Settings(), LAYERS, D, catalogue=server.reader.catalogue).read(HONEST),
        40,
        PROMPT,
    )
    work.clear()
    values = [
        HONEST,
        json.dumps(json.loads(HONEST)),
        *itertools.islice(hostile.plans(Settings(), LAYERS, PROMPT), 48),
    ]

    async def all_of_them():
        return await asyncio.gather(*map(server.ask, values), return_exceptions=True)

    answers = asyncio.run(all_of_them())
    assert answers[0] == answers[1] == wanted
    assert {type(one) for one in answers} == {dict, Refused}
    assert {name for _, name in work} == {"_plan", "_checked", "pack", "to_wire"}
    assert {thread.name for thread, _ in work} == {"steerfast-reader"}


def test_the_event_loop_goes_on_while_a_plan_is_read(server, monkeypatch):
    """A reading that ends only when the loop has done something else does end."""
    went_on, own = threading.Event(), PlanReader._plan
    monkeypatch.setattr(PlanReader, "_plan", lambda *args: went_on.wait(60) and own(*args))

    async def both():
        asked = asyncio.create_task(server.ask(HONEST))
        await asyncio.sleep(0.01)
        went_on.set()
        return await asked

    assert asyncio.run(both())["prompt"] == len(PROMPT)


def test_a_short_request_waits_for_one_long_one_at_most(server, monkeypatch):
    """A hundred long ones came before it."""
    order, own, begin = [], PlanReader._plan, threading.Event()

    def noted(reader, text):
        begin.wait(60)
        order.append(text)
        return own(reader, text)

    monkeypatch.setattr(PlanReader, "_plan", noted)
    long = [
        text
        for text in itertools.islice(hostile.plans(Settings(), LAYERS, PROMPT), 130)
        if len(text) > 200
    ]

    async def everybody():
        asked = [asyncio.create_task(server.ask(text)) for text in long]
        waiting = server.front.aside._waiting
        while waiting.qsize() < len(long) - 1:  # all but the first, which is being read
            await asyncio.sleep(0)
        honest = asyncio.create_task(server.ask(HONEST))
        while waiting.qsize() < len(long):
            await asyncio.sleep(0)
        begin.set()
        await honest
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(everybody())
    assert order.index(HONEST) == 1


def test_what_was_refused_is_not_looked_at_again(server, work):
    """However often, in whatever order: a plan is read once, and lowered once for a course."""
    some = list(itertools.islice(hostile.plans(Settings(), LAYERS, PROMPT), 24))

    async def often(times):
        for _ in range(times):
            await asyncio.gather(*map(server.ask, some), return_exceptions=True)

    asyncio.run(often(1))
    once = [name for _, name in work if name != "to_wire"]
    asyncio.run(often(4))
    assert [name for _, name in work if name != "to_wire"] == once


def test_a_thousand_hostile_requests_leave_nothing(server, monkeypatch):
    """No tensor of theirs is kept, and as many bytes as were allowed; work is bounded by what each one's own course needs."""
    sites, own = [], lowering._site
    monkeypatch.setattr(lowering, "_site", lambda *args: sites.append(args[0]) or own(*args))
    server.reader._plans.room = server.reader._parts.room = 2**19
    made = hostile.plans(Settings(), LAYERS, PROMPT)

    async def ask(count):
        for _ in range(count // 25):
            await asyncio.gather(
                *(server.ask(next(made)) for _ in range(25)), return_exceptions=True
            )
            assert await server.ask(HONEST)

    def tensors():
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    asyncio.run(ask(200))
    before = tensors()
    sites.clear()
    asyncio.run(ask(1000))
    assert tensors() <= before + 50
    kept = server.reader._plans, server.reader._parts
    assert 2**19 < sum(one.bytes for one in kept) <= 2**20
    assert len(sites) <= 1040 * 64 * LAYERS
    assert sum(map(bool, sites)) > 1000, "they were looked at"


def test_half_a_letter_in_a_reason_can_be_sent(server):
    with pytest.raises(Refused) as caught:
        asyncio.run(server.ask(json.dumps({"terms": [{"vector": "joy", "select": "\ud800"}]})))
    str(caught.value).encode()


def test_parameters_made_on_a_loop_wait_for_the_engine(server, work):
    """Of a caller of the engine: what was not read ahead is not read there, and refused when it is added."""
    bad = json.dumps({"terms": [{"vector": "no"}]})

    async def make_and_add():
        params = SimpleNamespace(extra_args={FIELD: bad})
        front._verify(lambda params: None, params)
        assert work == []
        prompt = {"type": "token", "prompt_token_ids": PROMPT}
        await ahead._add(server._add, server.engine, "name", prompt, params)

    with pytest.raises(Refused, match="no vector 'no'"):
        asyncio.run(make_and_add())
    with pytest.raises(Refused, match="no vector 'no'"):  # off a loop, at once
        front._verify(lambda params: None, SimpleNamespace(extra_args={FIELD: bad}))


def test_a_prompt_that_vllm_changes_is_not_answered_by_what_was_read_ahead(server):
    """The wire form is that of the tokens that the request has in the end."""

    async def truncating(engine, name, prompt, params):
        prompt["prompt_token_ids"] = PROMPT[-5:]
        return await Server._add(server, engine, name, prompt, params)

    server._add = truncating
    assert asyncio.run(server.ask(HONEST))["prompt"] == 5


@pytest.mark.parametrize("count", [5, 9, 10])
def test_many_sequences_are_served_by_the_order_of_the_prompt(server, count):
    """2^n combinations, of which a request takes n; an order is a share, and the same one for the same order."""
    terms = [
        {"vector": "joy", "coefficient": 1 + at, "select": {"after_sequence": [at]}}
        for at in range(count)
    ]
    text = json.dumps({"terms": terms})
    orders = [list(range(count)), list(range(count))[::-1], [50, *range(count), 60]]
    room = Cost(count, count * LAYERS, 0)
    one, other, same = (
        arrived(asyncio.run(server.ask(text, order)), LAYERS, D, room) for order in orders
    )
    assert one["cost"] == other["cost"] == list(room)
    assert one["share"] == same["share"] != other["share"]
    server.reader.settings = Settings(slots=count - 1)
    with pytest.raises(Refused, match=rf"needs {count} slots.*STEERFAST_SLOTS"):
        asyncio.run(server.ask(text + " ", orders[0]))


def test_one_thing_after_another_the_least_first_and_nothing_for_who_has_gone():
    order, aside = [], Aside("test")
    started, begin = threading.Event(), threading.Event()

    async def run():
        first = asyncio.create_task(aside.run(0, lambda: started.set() or begin.wait(60)))
        while not started.is_set():
            await asyncio.sleep(0)
        rest = [
            asyncio.create_task(aside.run(size, lambda size=size: order.append(size)))
            for size in (9, 3, 7, 5)
        ]
        await asyncio.sleep(0)
        rest.pop(2).cancel()
        await asyncio.sleep(0)
        begin.set()
        await asyncio.gather(first, *rest)
        with pytest.raises(ZeroDivisionError):
            await aside.run(1, lambda: 1 // 0)
        return await aside.run(1, threading.current_thread)

    assert asyncio.run(run()).name == "test"
    assert order == [3, 5, 9]
