"""How a ``use``, a loop, a generation and an attachment end while something of them goes on: right, or refused."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading

import pytest
import torch
from tiny_llama import tiny_llama
from transformers.models.llama import modeling_llama

from steerfast import (
    AfterSequence,
    Condition,
    SteerfastError,
    SteeringVector,
    Test,
    attach,
    steer,
)

IDS = torch.tensor([[5, 6, 7, 8]])
ASKED = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
VECTOR = SteeringVector("v", {1: torch.randn(32, generator=torch.Generator().manual_seed(3))})
PLAN, OTHER = steer(VECTOR, 1.0), steer(VECTOR, -1.0)


def tiny():
    return tiny_llama(hidden=32, layers=3, vocabulary=64, heads=2, spread=0.2)


@pytest.fixture
def handle():
    handle = attach(tiny())
    yield handle
    gc.collect()
    assert handle.table.slots_in_use == 0
    handle.detach()


def tokens(handle, plan):
    with handle.use(plan):
        return handle.model.generate(IDS, **ASKED)[0].tolist()


def steered(handle):
    with torch.no_grad():
        handle.model(IDS)
    return handle.report().steered


def in_thread(job):
    found = []

    def run():
        try:
            found.append(job())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


# -- detach ------------------------------------------------------------------------------------------------


def test_detach_waits_for_blocks_of_other_threads_and_tasks(handle):
    inside, go_on, found = threading.Event(), threading.Event(), []

    def work():
        with handle.use(PLAN):
            found.append(steered(handle))
            inside.set()
            go_on.wait()
            found.append(steered(handle))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with pytest.raises(SteerfastError, match="1 blocks of use"):
        handle.detach()
    go_on.set()
    thread.join()
    assert found == [4, 4]

    async def block(ready):
        with handle.use(PLAN):
            ready.set()
            await asyncio.sleep(0.05)
            return steered(handle)

    async def both():
        ready = asyncio.Event()
        task = asyncio.create_task(block(ready))
        await ready.wait()
        with pytest.raises(SteerfastError, match="1 blocks of use"):
            handle.detach()
        return await task

    assert asyncio.run(both()) == 4


def test_no_detach_within_a_forward_or_a_generation(handle):
    said = []

    def detach(*_):
        with pytest.raises(SteerfastError, match="cannot detach while 1 thread") as caught:
            handle.detach()
        said.append(caught)

    hook = handle.model.model.layers[0].register_forward_hook(detach)
    with handle.use(PLAN):
        assert steered(handle) == 4
    hook.remove()

    def processor(ids, scores):
        detach()
        return scores

    with handle.use(PLAN):
        found = handle.model.generate(IDS, **ASKED, logits_processor=[processor])[0].tolist()
    assert found == tokens(handle, PLAN)
    assert len(said) == 7


def test_a_loop_of_a_detached_model_does_not_go_on():
    with attach(tiny()) as handle, handle.generating(IDS) as loop:
        loop.step(4)
        handle.model(IDS)
        handle.detach()
        with pytest.raises(SteerfastError, match="detached"):
            loop.step(1)


def test_a_manager_of_continuous_batching_does_not_outlive_the_attachment(handle):
    manager = handle.model.init_continuous_batching()
    manager.is_running = lambda: True
    with pytest.raises(SteerfastError, match="manager of continuous batching runs"):
        handle.detach()
    manager.is_running = lambda: False
    model = tiny()
    with attach(model):
        late = model.init_continuous_batching()
    with pytest.raises(SteerfastError, match="is detached"):
        late.add_request([5, 6, 7], plan=PLAN)


# -- blocks whose steps run elsewhere -----------------------------------------------------------------------


def test_a_generator_whose_steps_run_in_several_threads_says_so(handle):
    def steps():
        with handle.use(PLAN):
            for _ in range(2):
                yield steered(handle)

    generator = steps()
    assert in_thread(lambda: next(generator)) == 4
    in_thread(lambda: next(generator))
    end = in_thread(lambda: next(generator, None))
    assert isinstance(end, SteerfastError)
    assert "another thread or task than it began in" in str(end)
    generator = steps()  # in one thread it is right, whatever the caller has in force
    assert next(generator) == 4
    assert next(generator) == 4
    assert next(generator, "end") == "end"


def test_an_error_in_such_a_block_is_not_hidden(handle):
    def steps():
        with handle.use(PLAN):
            yield
            raise KeyError("mine")

    generator = steps()
    in_thread(lambda: next(generator))
    with pytest.raises(KeyError, match="mine"):
        next(generator)


def test_a_use_has_one_block(handle):
    use = handle.use(PLAN)
    with use:
        with pytest.raises(SteerfastError, match="has a block already"):
            use.__enter__()
        assert isinstance(in_thread(use.__enter__), SteerfastError)
        assert steered(handle) == 4
    with pytest.raises(SteerfastError, match="has ended"):
        use.__enter__()


def test_slots_come_back_from_threads_that_never_ended_their_use():
    with attach(tiny(), slots=2) as handle:
        for number in range(6):
            plan = steer(VECTOR, 1.0 + number)
            assert in_thread(lambda plan=plan: handle.use(plan) and steered(handle)) == 4
            gc.collect()
        assert handle.table.slots_in_use == 0


# -- what a loop and a generation keep ------------------------------------------------------------------------


def decoding(handle, plan):
    """The loop of the docs as a generator of tokens."""
    step, cache = IDS, None
    with handle.use(plan), handle.generating(IDS) as loop:
        while True:
            loop.step(step.shape[1])
            with torch.no_grad():  # whose ends must not take turns
                output = handle.model(step, past_key_values=cache, use_cache=True)
            cache, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
            yield int(step)


def test_loops_that_take_turns_in_one_thread_are_right_or_refused(handle):
    expected = {id(plan): tokens(handle, plan)[4:] for plan in (PLAN, OTHER)}
    first, second = decoding(handle, PLAN), decoding(handle, OTHER)
    found = [next(first), next(second)]
    assert found == [expected[id(PLAN)][0], expected[id(OTHER)][0]]
    with pytest.raises(SteerfastError, match=r"another use\(\) is in force here"):
        next(first)
    assert [next(second) for _ in range(3)] == expected[id(OTHER)][1:4]
    second.close()


def test_a_loop_keeps_its_use_to_its_end(handle):
    expected = tokens(handle, PLAN)[4:]
    use = handle.use(PLAN)
    found, step, cache = [], IDS, None
    with handle.generating(IDS) as loop, torch.no_grad():
        for _ in range(6):
            loop.step(step.shape[1])
            output = handle.model(step, past_key_values=cache, use_cache=True)
            cache, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
            found.append(int(step))
            use.close()
        with handle.use(OTHER), pytest.raises(SteerfastError, match="another use"):
            loop.step(1)
    assert found == expected
    with pytest.raises(SteerfastError, match="this loop has ended"):
        loop.step(1)


def test_a_generation_keeps_its_use_whatever_a_callback_opens(handle):
    expected, opened = tokens(handle, PLAN), []

    def processor(ids, scores):
        opened.append(handle.use(OTHER))
        return scores

    with handle.use(PLAN):
        found = handle.model.generate(IDS, **ASKED, logits_processor=[processor])[0].tolist()
        for use in opened:
            use.close()
    assert found == expected != tokens(handle, OTHER)


# -- what is said of prompts, and classes that change ---------------------------------------------------------


def test_prompts_that_the_model_does_not_read_are_refused(handle):
    plan = steer(VECTOR, 1.0, select=AfterSequence((7,)))
    with handle.use(plan, prompts=[[5, 7, 6, 8]]):
        with pytest.raises(ValueError, match="token 7 at position 1, and the model reads 6"):
            handle.model(IDS)
        with pytest.raises(ValueError, match="token 7 at position 1, and the model reads 6"):
            handle.model.generate(IDS, **ASKED)
    mask = torch.tensor([[0, 1, 1, 1]])
    with handle.use(plan, prompts=[[6, 7, 8]]), torch.no_grad():
        handle.model(IDS, attention_mask=mask)
        assert handle.report().steered == 2


@pytest.mark.parametrize("name", ["LlamaDecoderLayer", "LlamaRMSNorm", "LlamaModel"])
def test_a_class_that_is_patched_after_attach_is_noticed(handle, name, monkeypatch):
    kind = getattr(modeling_llama, name)
    inner = kind.forward
    with monkeypatch.context() as patched:
        patched.setattr(kind, "forward", lambda self, *args, **kwargs: inner(self, *args, **kwargs))
        with pytest.raises(SteerfastError, match=f"{name}.forward was replaced after attach"):
            handle.model(IDS)
    handle.model(IDS)


def conditional(handle):
    """A plan whose condition holds for one of two prompts, by their projections at the last token."""
    prompts, read = [torch.tensor([[5, 6, 60, 61]]), torch.tensor([[9, 10, 60, 11]])], []
    key = SteeringVector("k", {0: torch.randn(32, generator=torch.Generator().manual_seed(5))})
    hook = handle.model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: read.append(
            float(output[0, -1] @ key.at(0) / key.at(0).norm())
        )
    )
    with torch.no_grad():
        for ids in prompts:
            handle.model(ids)
    hook.remove()
    test = Test("projection", key, 0, threshold=sum(read) / 2, below=read[0] < read[1], over="last")
    return prompts, steer(VECTOR, 1.0, select="generated", condition=Condition(test))


def test_caches_of_two_prompts_take_turns_under_a_condition(handle):
    """What was read last decides; a cache of what was read before is refused, a copy of this one goes on."""
    prompts, plan = conditional(handle)
    new, model = torch.tensor([[20]]), handle.model

    def read(ids):
        return model(ids, use_cache=True).past_key_values

    def go_on(cache):
        return model(new, past_key_values=cache).logits

    with torch.no_grad():
        with handle.use(plan, prompt_lengths=[4]):
            expected = [go_on(read(ids)) for ids in prompts]
            first = read(prompts[0])
            branch = copy.deepcopy(first)
            assert torch.equal(go_on(first), expected[0])
            assert torch.equal(go_on(branch), expected[0])
            second = read(prompts[1])
            with pytest.raises(
                SteerfastError, match="of other prompts than those that were read last"
            ):
                go_on(first)
            assert torch.equal(go_on(second), expected[1])
        alone = [go_on(read(ids)) for ids in prompts]
    assert not torch.equal(expected[0], alone[0])
    assert torch.equal(expected[1], alone[1])
