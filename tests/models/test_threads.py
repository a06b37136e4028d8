"""Threads and tasks on one attached model: each runs as if it were alone, and a ``use`` holds where the code around it says.

What is right comes from plain hooks on a model of transformers that was never attached, one request at a time.
"""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import TextIteratorStreamer

from steerfast import (
    Condition,
    SteerfastError,
    SteeringVector,
    Test,
    attach,
    steer,
)
from steerfast.errors import TableFullError
from steerfast.models import handle_of

LAYER, NEW = 1, 6
SCALES = (6.0, -6.0, 0.0, 20.0)
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [5, 6, 7, 8, 9, 10, 11, 12, 13]]


def tiny():
    return tiny_llama(hidden=32, layers=3, vocabulary=64, heads=2, spread=0.2, seed=2)


def direction(seed=0):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


VECTOR = SteeringVector("v", {LAYER: direction()})
PLANS = {scale: steer(VECTOR, scale, layers=[LAYER]) if scale else None for scale in SCALES}


def answer(model, prompt, **more):
    ids = torch.tensor([prompt])
    asked = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **more}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0].tolist()


@pytest.fixture(scope="module")
def wanted():
    """{(scale, prompt's number): token ids}, by a plain hook."""
    stock, unit = tiny(), direction()
    found = {}
    for scale, number in product(SCALES, range(len(PROMPTS))):
        handle = stock.model.layers[LAYER].register_forward_hook(
            lambda module, inputs, output, scale=scale: output + scale * unit
        )
        found[scale, number] = answer(stock, PROMPTS[number])
        handle.remove()
    assert len({tuple(tokens) for tokens in found.values()}) == len(found)
    return found


def in_threads(*jobs):
    """Run all at once, each in a thread of its own; the first error is raised."""
    errors = []

    def run(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def model():
    model = tiny()
    with attach(model):
        yield model


def test_a_plan_a_thread(model, wanted):
    """Other prompts, other plans, uses within uses, one row and several: every thread gets what it would get alone."""
    handle = handle_of(model)

    def job(seed):
        rng = random.Random(seed)

        def check(scale):
            number = rng.randrange(len(PROMPTS))
            assert answer(model, PROMPTS[number]) == wanted[scale, number], (seed, scale, number)

        def run():
            for _ in range(6):
                outer, inner = rng.choice(SCALES), rng.choice(SCALES)
                check(0.0)
                with handle.use(PLANS[outer]) as use:
                    check(outer)
                    with handle.use(PLANS[inner]):
                        check(inner)
                    check(outer)
                    other = rng.choice([scale for scale in SCALES if scale])
                    use.change(PLANS[other])
                    check(other)
                both = rng.sample(SCALES, 2)
                with handle.use([PLANS[scale] for scale in both]):
                    ids = torch.tensor([PROMPTS[0]] * 2)
                    rows = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
                assert rows.tolist() == [wanted[scale, 0] for scale in both], seed

        return run

    in_threads(*(job(seed) for seed in range(4)))
    assert handle.table.slots_in_use == 0


def test_bare_forwards_of_one_shape_in_many_threads(model):
    """As many rows in every thread, so that another one's route would fit."""
    handle, ids = handle_of(model), torch.tensor([PROMPTS[0]])
    stock, unit = tiny(), direction()
    expected = {}
    for scale in SCALES:
        hook = stock.model.layers[LAYER].register_forward_hook(
            lambda module, inputs, output, scale=scale: output + scale * unit
        )
        with torch.no_grad():
            expected[scale] = stock(ids).logits
        hook.remove()

    def job(scale):
        def run():
            with torch.no_grad():
                for _ in range(40):
                    with handle.use(PLANS[scale]):
                        torch.testing.assert_close(model(ids).logits, expected[scale])
                        steered = len(PROMPTS[0]) if scale else 0
                        assert handle.report().steered == steered

        return run

    in_threads(*(job(scale) for scale in SCALES))


def test_conditions_are_decided_for_each_thread(model, wanted):
    """A condition that holds in one thread and not in the other, both reading at once."""
    handle = handle_of(model)

    def job(threshold, scale):
        test = Test("projection", VECTOR, LAYER, threshold=threshold)
        plan = steer(VECTOR, 6.0, layers=[LAYER], condition=Condition(test), select="generated")

        def run():
            for _ in range(10):
                with handle.use(plan):
                    found = answer(model, PROMPTS[1])
                with handle.use(steer(VECTOR, scale, layers=[LAYER], select="generated")):
                    assert found == answer(model, PROMPTS[1])

        return run

    in_threads(job(-1e9, 6.0), job(1e9, 0.0))


def test_use_holds_in_threads_that_are_started_in_it_and_in_no_others(model, wanted):
    handle, found = handle_of(model), {}
    begin, done = threading.Event(), threading.Event()

    def elsewhere():
        begin.wait()
        found["elsewhere"] = answer(model, PROMPTS[0])
        done.set()

    outside = threading.Thread(target=elsewhere)
    outside.start()
    with handle.use(PLANS[6.0]):
        begin.set()
        done.wait()
        in_threads(lambda: found.update(inside=answer(model, PROMPTS[0])))
    outside.join()
    in_threads(lambda: found.update(after=answer(model, PROMPTS[0])))
    assert found == {
        "inside": wanted[6.0, 0],
        "elsewhere": wanted[0.0, 0],
        "after": wanted[0.0, 0],
    }


def test_a_job_of_a_pool_has_what_holds_where_it_was_submitted(model, wanted):
    handle = handle_of(model)
    with ThreadPoolExecutor(1) as pool:
        for scale in (6.0, 0.0, -6.0):  # in the very same thread
            with handle.use(PLANS[scale]):
                assert pool.submit(answer, model, PROMPTS[1]).result() == wanted[scale, 1]
        assert pool.submit(answer, model, PROMPTS[1]).result() == wanted[0.0, 1]
        with handle.use(PLANS[20.0]):
            assert list(pool.map(lambda p: answer(model, p), PROMPTS)) == [
                wanted[20.0, number] for number in range(len(PROMPTS))
            ]


def test_tasks_of_one_event_loop(model, wanted):
    """Each has its own use over its awaits, and so have what it sends to threads and the tasks that it makes."""
    handle = handle_of(model)

    async def one(scale):
        with handle.use(PLANS[scale]):
            for number, prompt in enumerate(PROMPTS):
                await asyncio.sleep(0)
                assert answer(model, prompt) == wanted[scale, number]
                assert await asyncio.to_thread(answer, model, prompt) == wanted[scale, number]
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(None, answer, model, prompt)
                assert found == wanted[scale, number]
                assert await asyncio.create_task(child(prompt)) == wanted[scale, number]

    async def child(prompt):
        await asyncio.sleep(0)
        return answer(model, prompt)

    async def every():
        await asyncio.gather(*(one(scale) for scale in SCALES))
        assert answer(model, PROMPTS[0]) == wanted[0.0, 0]

    asyncio.run(every())


def test_loops_of_tasks_take_turns_between_step_and_forward(model):
    """What a step prepared is for the forward of its own task, though another task's come in between."""
    handle = handle_of(model)

    def token(logits):
        return logits[:, -1:].argmax(-1)

    async def decode(scale, prompt):
        ids, cache, new = torch.tensor([prompt]), None, []
        with handle.use(PLANS[scale]), handle.generating(ids) as loop:
            tokens = ids
            for _ in range(NEW):
                loop.step(tokens.shape[1])
                await asyncio.sleep(0)
                with torch.no_grad():  # a thread's, so that tasks must not take turns in it
                    output = model(tokens, past_key_values=cache, use_cache=True)
                cache, tokens = output.past_key_values, token(output.logits)
                new += tokens[0].tolist()
        return prompt + new

    async def every():
        return await asyncio.gather(*(decode(scale, PROMPTS[0]) for scale in SCALES))

    found = asyncio.run(every())
    for scale, tokens in zip(SCALES, found, strict=True):
        with handle.use(PLANS[scale]):
            assert tokens == answer(model, PROMPTS[0])


class Words:
    """Something for a streamer to decode with."""

    def decode(self, ids, **_):
        return "".join(f"{int(token)} " for token in ids)


def test_a_streamer_steers_as_the_code_reads(model, wanted):
    """And a generation that is under way when its use ends goes on as it began, then gives its slots back."""
    handle = handle_of(model)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True)
    with handle.use(PLANS[6.0]):
        thread = threading.Thread(
            target=answer, args=(model, PROMPTS[2]), kwargs={"streamer": streamer}
        )
        thread.start()
        pieces = iter(streamer)
        text = next(pieces)
    with handle.use(PLANS[-6.0]):  # no business of that thread's
        assert answer(model, PROMPTS[0]) == wanted[-6.0, 0]
        text += "".join(pieces)
        thread.join()
    assert [int(one) for one in text.split()] == wanted[6.0, 2][len(PROMPTS[2]) :]
    assert handle.table.slots_in_use == 0


def test_a_thread_whose_use_has_ended_before_it_ran_the_model_says_so(model, wanted):
    handle, go, found = handle_of(model), threading.Event(), {}

    def late():
        go.wait()
        with pytest.raises(SteerfastError, match="has ended, and it runs the model"):
            answer(model, PROMPTS[0])
        with handle.use(None):
            found["told"] = answer(model, PROMPTS[0])

    with handle.use(PLANS[6.0]):
        thread = threading.Thread(target=late)
        thread.start()
    go.set()
    thread.join()
    assert found == {"told": wanted[0.0, 0]}


@pytest.mark.parametrize("slots", [1, 8], ids=["in place", "beside"])
def test_plans_change_from_another_thread_at_the_border_of_a_token(slots):
    """Whenever it comes, all tokens before are of the one plan and all behind it of the other."""
    model, stock, unit = tiny(), tiny(), direction()
    prompt, length = PROMPTS[0], 24

    def by_hooks(change_at):
        def hook(module, inputs, output):
            seen["tokens"] += output.shape[1]
            return output + (6.0 if seen["tokens"] <= change_at else -6.0) * unit

        seen = {"tokens": 0}
        handle = stock.model.layers[LAYER].register_forward_hook(hook)
        found = answer(stock, prompt, max_new_tokens=length)
        handle.remove()
        return found

    possible = [by_hooks(at) for at in range(len(prompt) - 1, len(prompt) + length + 1)]
    with attach(model, slots=slots) as handle:
        for _ in range(3):
            streamer, found = TextIteratorStreamer(Words(), skip_prompt=True), []
            with handle.use(PLANS[6.0]) as use:
                asked = {"streamer": streamer, "max_new_tokens": length}
                thread = threading.Thread(
                    target=lambda asked=asked, found=found: found.extend(
                        answer(model, prompt, **asked)
                    )
                )
                thread.start()
                for count, _ in enumerate(streamer):
                    if count == 3:
                        use.change(PLANS[-6.0])
                thread.join()
            assert found in possible
            assert handle.table.slots_in_use == 0


def test_a_forward_that_is_running_keeps_what_it_reads():
    """Its plan is changed, its use is ended and the table filled by others, in another thread, while it is in layer 0."""
    model, ids = tiny(), torch.tensor([PROMPTS[0]])
    inside, go_on = threading.Event(), threading.Event()
    with attach(model, slots=2) as handle, torch.no_grad():
        with handle.use(PLANS[6.0]):
            expected = model(ids).logits
        hook = model.model.layers[0].register_forward_hook(
            lambda *_: (inside.set(), go_on.wait())[0]
        )
        found = []
        with handle.use(PLANS[6.0]) as use:
            thread = threading.Thread(
                target=torch.no_grad()(lambda: found.append(model(ids).logits))
            )
            thread.start()
            inside.wait()
            use.change(PLANS[-6.0])
        with pytest.raises(TableFullError):  # one of the two slots is being read
            handle.use([PLANS[20.0], steer(VECTOR, 9.0, layers=[LAYER])])
        with pytest.raises(SteerfastError, match="cannot detach while 1 thread"):
            handle.detach()
        go_on.set()
        thread.join()
        hook.remove()
        torch.testing.assert_close(found[0], expected)
        assert handle.table.slots_in_use == 0


def test_a_forward_inside_of_a_forward(model):
    """A hook that calls the model again, with as many rows: both are what they are alone."""
    handle, ids = handle_of(model), torch.tensor([PROMPTS[0]])
    other, inner = torch.tensor([PROMPTS[0][::-1]]), []
    with torch.no_grad(), handle.use(PLANS[6.0]):
        expected, within = model(ids).logits, model(other).logits

        def again(*_):
            if not inner:
                inner.append(None)
                inner[0] = model(other).logits

        hook = model.model.layers[0].register_forward_hook(again)
        torch.testing.assert_close(model(ids).logits, expected)
        hook.remove()
    torch.testing.assert_close(inner[0], within)


def test_generate_inside_of_a_forward_is_refused(model):
    hook = model.model.layers[0].register_forward_hook(
        lambda *_: answer(model, PROMPTS[0]) and None
    )
    with pytest.raises(SteerfastError, match="from inside a forward"):
        model(torch.tensor([PROMPTS[0]]))
    hook.remove()


def test_a_loop_is_stepped_where_the_model_is_called(model):
    handle, ids = handle_of(model), torch.tensor([PROMPTS[0]])
    plan = steer(VECTOR, 6.0, layers=[LAYER], select="generated")
    with handle.use(plan), handle.generating(ids) as loop, ThreadPoolExecutor(1) as pool:
        loop.step(ids.shape[1])
        with pytest.raises(SteerfastError, match=r"call loop.step\(\.\.\.\) where"):
            pool.submit(model, ids).result()
        model(ids)


def test_a_route_of_a_step_is_made_anew_where_plans_changed_before_its_forward(model):
    handle, ids = handle_of(model), torch.tensor([PROMPTS[0]])
    with torch.no_grad(), handle.use(PLANS[-6.0]):
        expected = model(ids).logits
    with torch.no_grad(), handle.use(PLANS[6.0]) as use, handle.generating(ids) as loop:
        loop.step(ids.shape[1])
        in_threads(lambda: use.change(PLANS[-6.0]))
        assert torch.equal(model(ids).logits, expected)
