"""Compiled by ``torch.compile`` in other ways than as a whole: layer by layer, with breaks in the graph, in many threads."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_llama import tiny_llama

from steerfast import Condition, First, SteerfastError, SteeringVector, Test, attach, steer

IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
ASKED = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


def tiny():
    return tiny_llama(hidden=32, layers=2, vocabulary=64, heads=2, spread=0.2)


def vector(seed):
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {layer: torch.randn(32, generator=rng) for layer in range(2)})


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):  # dynamo guards on layer_idx
        yield
    torch._dynamo.reset()


def layer_by_layer(model):
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)


def with_breaks(model):
    mlp = model.model.layers[1].mlp
    inner = mlp.forward

    def broken(x):
        torch._dynamo.graph_break()
        return inner(x)

    mlp.forward = broken
    model.forward = torch.compile(model.forward, backend="eager")


def test_layer_by_layer():
    """Each layer asks for the route of the forward that it is in; called by itself it has none."""
    model, eager = tiny(), tiny()
    held = Condition(Test("projection", vector(3), 0, threshold=0.0, over="last"))
    plans = [
        None,
        [steer(vector(1), -2.0, layers=[0]), None],
        [steer(vector(1), 3.0, layers=[1], select="generated", condition=held)] * 2,
    ]
    with attach(model, measured=[("resid_post", 0)]) as fast, attach(eager) as slow:
        layer_by_layer(model)
        for plan in plans:
            with fast.use(plan), slow.use(plan):
                assert torch.equal(model.generate(IDS, **ASKED), eager.generate(IDS, **ASKED))
                assert fast.report().steered == slow.report().steered
        x, layer = torch.randn(1, 1, 32), model.model.layers[0]
        where = model.model.rotary_emb(x, torch.zeros(1, 1))
        with fast.use(plans[1][0]), pytest.raises(SteerfastError, match="by itself"):
            layer(x, position_embeddings=where)


def test_with_breaks_in_the_graph():
    model, eager = tiny(), tiny()
    with attach(model) as fast, attach(eager) as slow, torch.no_grad():
        with_breaks(model)
        for plan in (None, steer(vector(1), 2.0), [steer(vector(1), -2.0, layers=[0]), None]):
            with fast.use(plan), slow.use(plan):
                torch.testing.assert_close(
                    model(IDS, use_cache=False).logits, eager(IDS, use_cache=False).logits
                )
                assert fast.report().steered == slow.report().steered


def test_one_graph_in_many_threads():
    """It is traced once; each thread runs it under its own plan, packed rows too."""
    model, eager = tiny(), tiny()
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 8]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1]]),
    }
    each = [
        steer(vector(1), 2.0),
        steer(vector(1), -2.0, select=First(1)),
        None,
        [steer(vector(2), 1.0), None],  # one for each of the two sequences
    ]
    with attach(model) as fast, attach(eager) as slow, torch.no_grad():
        compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
        expected = []
        for plan in each:
            with slow.use(plan):
                expected.append(eager(**batch, use_cache=False).logits)
        for plan in (None, each[0]):
            with fast.use(plan):
                compiled(**batch, use_cache=False)
        before, wrong = torch._dynamo.utils.counters["stats"]["unique_graphs"], []

        def work(plan, want):
            with torch.no_grad():
                for _ in range(20):
                    with fast.use(plan):
                        found = compiled(**batch, use_cache=False).logits
                    if not torch.allclose(found, want, atol=1e-5):
                        wrong.append(plan)

        threads = [
            threading.Thread(target=work, args=both) for both in zip(each, expected, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_a_compiled_loop_keeps_the_use_that_it_began_under():
    """Though that has ended."""
    model, eager = tiny(), tiny()
    plan = steer(vector(1), 2.0, select="generated")
    with attach(model) as fast, attach(eager) as slow, torch.no_grad():
        compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
        found = []
        for handle, forward in ((fast, compiled), (slow, eager)):
            use = handle.use(plan)
            with handle.generating(IDS[:, :2]) as loop:
                loop.step(2)
                use.close()
                cache = forward(IDS[:, :2], use_cache=True).past_key_values
                loop.step(2)
                found.append(forward(IDS[:, 2:], past_key_values=cache).logits)
                assert handle.report().steered == 4
    torch.testing.assert_close(*found)
