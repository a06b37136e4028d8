"""Recorded graphs stand in for CUDA's: what they do again, what they cannot know, what they refuse."""

from __future__ import annotations

import pytest
import torch

from gpu import graphs, recorded, timing
from harness import decode_runners, shapes


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_a_replay_computes_from_what_is_there_now():
    """Views, results in place and out of place, a result that shares memory with another."""
    x, weight, kept = torch.ones(2, 3), torch.arange(9.0).reshape(3, 3), torch.zeros(3)

    def call():
        y = (x @ weight).t().contiguous()
        kept.add_(y[:, 0])
        return y, y[1:], kept * 2

    graph, (y, part, double) = recorded.capture(call)
    assert torch.equal(kept, torch.tensor([9.0, 12.0, 15.0]))
    x.fill_(2.0)
    graph.replay()
    assert torch.equal(y, (x @ weight).t())
    assert torch.equal(part, y[1:])
    assert torch.equal(kept, torch.tensor([27.0, 36.0, 45.0]))  # once more, of twice as much
    assert torch.equal(double, 2 * kept)


def test_python_does_not_run_again():
    x, factors = torch.ones(2), [3.0]
    graph, out = recorded.capture(lambda: x * factors[0])
    factors[0] = 5.0
    graph.replay()
    assert out.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "reading", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.nonzero()]
)
def test_reading_a_value_is_refused_as_by_a_capture(reading):
    with pytest.raises(RuntimeError, match="reads a tensor's value"):
        recorded.capture(lambda: reading(torch.ones(2)))


def test_code_is_told_that_it_is_captured_and_only_then():
    asked = torch.cuda.is_current_stream_capturing
    seen = []
    recorded.capture(lambda: seen.append(torch.cuda.is_current_stream_capturing()))
    assert seen == [True]
    assert torch.cuda.is_current_stream_capturing is asked


def test_what_comes_before_a_call_is_outside_of_the_graph():
    x, order = torch.zeros(1), []

    def call():
        order.append("call")
        return x.add_(1)

    graph, _ = graphs.captured(call, before=lambda: order.append("before"), warm=2)
    graph.replay()
    assert order == ["before", "call"] * 3
    assert x.item() == 4


# -- times ----------------------------------------------------------------------------------------


def test_a_graph_has_enough_calls_and_a_time_is_of_one_of_them(monkeypatch):
    """Graphs that take 0.1 ms, and 0.2 ms a call that is in them."""
    counts = {}

    def graph_of(calls, times):
        graph = [None] * (len(calls) * times)
        counts[len(calls)] = len(graph)
        return graph

    monkeypatch.setattr(timing, "graph_of", graph_of)
    monkeypatch.setattr(timing, "_timed", lambda graph, replays: 0.2 * len(graph) * replays)
    versions = {"eight": [print] * 8, "many": [print] * 200, "one": [print]}
    times = timing.in_turn(versions, rounds=3)
    assert counts == {8: 128, 200: 200, 1: 128}
    assert times == {name: pytest.approx([200.0] * 3) for name in versions}


def test_results_are_held_until_as_many_others_were_made():
    """So that no call writes to what the one before has just given back, which is in the cache."""
    places = []

    def call():
        made = torch.empty(1000)
        places.append(made.data_ptr())
        return made

    timing.graph_of([call] * 4, 2)
    last = places[-8:]
    assert all(len(set(last[at : at + 3])) == 3 for at in range(6))


def test_figures_say_where_operands_lie(monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda: 60 << 20)
    assert timing.where(60 << 20) == "in cache"
    assert timing.where(61 << 20) == "in memory"


# -- decode steps ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return shapes.random_model("tiny", torch.float32, 1)


@pytest.mark.parametrize("kind", ["stock", "hooks", "steered", "without reads"])
def test_every_mode_gives_the_same_logits(model, kind):
    """Captured, compiled, both: hooks too are in a graph, and none is taken for one without."""
    plans = decode_runners.plans_for(decode_runners.bank(model), 2, 2, "distinct", "add", 0)
    how = {
        "stock": {},
        "hooks": {"plans": plans, "hooks": True},
        "steered": {"plans": plans, "attached": True},
        "without reads": {"plans": plans, "attached": True, "programs": 0},
    }
    prompt = torch.arange(32).reshape(2, 16)
    first, second = torch.tensor([[3], [4]]), torch.tensor([[7], [9]])
    plain = decode_runners.Runner(model, prompt, "eager").step(second)
    found = {}
    for mode in decode_runners.MODES:
        runner = decode_runners.Runner(model, prompt, mode, compiler="eager", **how[kind])
        if mode != "eager":  # whose cache grows; the others decode one position again and again
            runner.step(first)
        found[mode] = runner.step(second).clone()
        runner.close()
    for mode, logits in found.items():
        assert (logits - found["eager"]).abs().max() < 1e-4, mode
    assert ((found["eager"] - plain).abs().max() > 1e-2) == (kind != "stock")


def test_variants_that_do_not_do_what_they_say_are_not_timed():
    stock, steered = torch.zeros(1, 8), torch.ones(1, 8)
    good = {"stock": stock, "patched": stock + 0.01, "steered": steered, "hooks": steered - 0.1}
    decode_runners.check(good)
    with pytest.raises(AssertionError, match=r"hooks is 1\.00 of the way"):
        decode_runners.check(good | {"hooks": stock})
    with pytest.raises(AssertionError, match=r"patched is 1\.00 of the way"):
        decode_runners.check(good | {"patched": steered})
    with pytest.raises(AssertionError, match="stock is"):  # a capture that has lost its steering
        decode_runners.check({"stock": stock, "steered": stock})
