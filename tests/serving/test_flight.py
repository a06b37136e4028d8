"""What requests hold of memory while an engine has them: bounded, in order, and free when they end, however."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest

from steerfast.serving.flight import Flight
from steerfast.serving.vllm import ahead
from steerfast.serving.wire import FIELD


@pytest.mark.parametrize("seed", range(6))
def test_never_more_than_there_is_and_everybody_has_a_turn_in_order(seed):
    """Requests of any size come, wait, give up and end; one alone may take more than there is."""
    chance, flight = random.Random(seed), Flight(100)
    order, running = [], {}

    async def request(number, size):
        this = flight.begin()
        running[number] = 0
        try:
            await flight.take(this, size)
            order.append(number)
            running[number] = size
            assert (
                sum(running.values()) <= flight.bytes
            )  # some have their turn, and do not know it yet
            assert flight.bytes <= 100 or sum(map(bool, flight._held.values())) == 1
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            del running[number]
            flight.end(this)

    async def everybody():
        tasks = []
        for number in range(200):
            tasks.append(asyncio.create_task(request(number, chance.randrange(1, 130))))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                chance.choice(tasks).cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(asyncio.wait_for(everybody(), 60))
    assert {type(one) for one in ends} <= {type(None), asyncio.CancelledError}
    assert order == sorted(order)
    assert sum(one is None for one in ends) > 100
    assert (flight.bytes, flight._held, len(flight._waiting)) == (0, {}, 0)


def test_what_nobody_would_end_is_not_counted():
    flight = Flight(10)

    async def run():
        await flight.take(None, 99)
        await flight.take(object(), 99)
        request = flight.begin()
        await flight.take(request, 4)
        await flight.take(request, 4)  # once
        assert flight.bytes == 4
        flight.end(request)
        await flight.take(request, 4)  # it has ended
        flight.end(request)

    asyncio.run(run())
    assert flight.bytes == 0


class Engine:
    """vLLM's, as far as ``generate`` adds a request and then says what comes out of it."""

    def __init__(self, room):
        self.flight = Flight(room)
        aside = SimpleNamespace(run=self._aside)
        self.front = SimpleNamespace(aside=aside, flight=self.flight, wire=self._wire)
        self.input_processor = SimpleNamespace(steerfast=self.front)
        self.vllm_config = self.steerfast_asked = None
        self.inside, self.most = 0, 0

    async def _aside(self, size, work):
        return work()

    def _wire(self, value, length, tokens):
        return {"rows": bytes(100)}

    def generate(self, prompt, params):
        return ahead._generate(Engine._generate, self, prompt, params)

    async def _generate(self, prompt, params):
        await ahead._add(Engine._add, self, "the same name", prompt, params)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for output in range(3):
                await asyncio.sleep(0)
                yield output
        finally:
            self.inside -= 1

    async def _add(self, name, prompt, params):
        await asyncio.sleep(0)


def test_a_servers_requests_are_counted_whatever_their_names(monkeypatch):
    """Two at a time have room; some leave after their first output, and one loop makes several by turns."""
    monkeypatch.setattr(ahead, "ask", lambda engine: asyncio.sleep(0))
    engine = Engine(room=1300)
    prompt = {"type": "token", "prompt_token_ids": [1, 2]}
    steered = SimpleNamespace(extra_args={FIELD: "{}"}, n=1)

    async def client(number):
        outputs = engine.generate(prompt, steered)
        if number % 3 == 0:
            async for _ in outputs:
                break
            await outputs.aclose()
            return []
        return [output async for output in outputs]

    async def unsteered():
        return [one async for one in engine.generate(prompt, SimpleNamespace(extra_args=None))]

    async def everybody():
        return await asyncio.gather(*map(client, range(30)))

    answers = asyncio.run(asyncio.wait_for(everybody(), 60))
    assert answers == [[] if number % 3 == 0 else [0, 1, 2] for number in range(30)]
    assert engine.most == 2
    assert (engine.flight.bytes, engine.inside) == (0, 0)
    assert asyncio.run(unsteered()) == [0, 1, 2]
