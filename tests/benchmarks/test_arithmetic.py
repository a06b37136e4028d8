"""From times to ratios: what the scripts make of times that are planted."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import bench_decode
import bench_extract
import bench_ops
import bench_peers
import bench_roofline
import bench_scale
import bench_serving
import bench_sweep
from harness.shapes import random_model
from harness.sweep_runners import Cell


def same(ratio):
    """A ratio without a spread, wherever it was taken."""
    return pytest.approx(dict.fromkeys(("ratio", "p20", "p80"), ratio))


def test_ops():
    times = {
        "eager": [40.0, 80.0], "batched": [30.0, 60.0], "unsteered": [8.0, 16.0], "steered": [10.0, 20.0],
        "steered A/A": [10.0, 20.0], "plain": [5.0, 10.0],
    }  # fmt: skip
    found = bench_ops.ratios(times)
    assert found["speedup_vs_eager"] == same(4.0)
    assert found["speedup_vs_batched"] == same(3.0)
    assert found["steered_over_unsteered"] == same(1.25)
    assert found["steered_over_plain"] == same(2.0)
    assert found["a_over_a"] == same(1.0)
    assert not {"distinct_over_unsteered", "speedup_vs_compiled"} & found.keys()  # not timed


def test_decode(monkeypatch):
    """The share: what the op takes longer steered, on each of 4 layers, of a step that nobody steers."""
    times = {"stock": [10.0] * 5, "patched": [8.0] * 5, "steered": [9.0] * 5, "patched again": [8.0] * 5}  # fmt: skip
    op = {"unsteered": {"median": 20.0}, "steered": {"median": 60.0}}
    monkeypatch.setattr(bench_decode, "step_times", lambda *given: times)
    monkeypatch.setattr(bench_decode, "op_times", lambda *given: op)
    arguments = SimpleNamespace(operator="add", steps=5, variants=list(times), compiler="eager")
    model = random_model("tiny", torch.float32)
    line = bench_decode.measured(model, "tiny", ("eager", 2, 1, "distinct"), arguments)
    ratios = {name: ratio["ratio"] for name, ratio in line["ratios"].items()}
    assert ratios == pytest.approx(
        {"steered_over_stock": 0.9, "steered_over_patched": 1.125, "patched_over_stock": 0.8, "a_over_a": 1.0}
    )  # fmt: skip
    assert line["ms"]["patched"]["median"] == 8.0
    if not torch.cuda.is_available():
        assert line["steering_share"] == pytest.approx(4 * 40 / 8000)


def test_roofline(monkeypatch):
    """The floor is the greater of the two, round by round."""
    times = {"op": [12.0] * 3, "op again": [12.0] * 3, "copy": [4.0, 8.0, 4.0], "launch": [6.0] * 3}
    monkeypatch.setattr(bench_roofline, "series", lambda *given: times)
    monkeypatch.setattr(bench_roofline, "WIDTH", 64)
    line = bench_roofline.measured(bench_roofline.SHAPES[1], "constant", "float32", 2, 3, 1e9)
    assert line["floor"]["median"] == 6.0
    assert line["over_floor"]["ratio"] == 2.0
    assert line["over_floor"]["p20"] == pytest.approx(1.7)  # of 1.5, 2 and 2
    assert line["bound"] == "launch"
    # x, residual, stream and normed, the weight, slot and gain of each row, one direction
    assert line["bytes"] == 4 * (4 * 2 * 64) + 4 * 64 + 8 * 2 + 4 * 64
    assert line["bytes_per_second"] == pytest.approx(line["bytes"] / 12e-6)


def test_scale():
    times = {str(k): [10.0 + 2 * k] * 3 for k in (1, 2, 4)} | {"4 again": [36.0] * 3}
    line = bench_scale.series_line("scale op", "reads", times)
    assert line["us"].keys() == {"1", "2", "4"}
    assert line["fit"]["at_zero"] == pytest.approx(10)
    assert line["fit"]["slope"] == pytest.approx({"median": 2, "p20": 2, "p80": 2})
    assert line["a_over_a"] == same(2.0)


def test_extract():
    wanted = {0: torch.tensor([3.0, 4.0]).double(), 1: torch.tensor([0.0, 2.0]).double()}
    found = {0: torch.tensor([3.0, 4.5]), 1: torch.tensor([0.0, -2.0])}
    assert bench_extract.error(found, wanted) == pytest.approx(2.0)
    assert bench_extract.error({0: found[0]}, wanted) == pytest.approx(0.1)
    assert bench_extract.cosine(found, wanted) == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))


# -- the grid search ------------------------------------------------------------------------------


def test_a_speedup_is_of_the_whole_grid():
    """Of the behaviours' times together, and its two shares multiply to it round by round."""
    times = {
        "one": {"paper": [8.0, 16.0, 8.0], "batched": [4.0, 4.0, 4.0], "forked": [1.0, 2.0, 1.0]},
        "two": {"paper": [4.0, 8.0, 4.0], "batched": [2.0, 2.0, 2.0], "forked": [1.0, 2.0, 1.0]},
    }
    whole = dict.fromkeys(("ratio", "p20", "p80", "low", "high"), 6.0)
    assert bench_sweep.speedup(times, "paper", "forked") == whole
    batching = bench_sweep.speedup(times, "paper", "batched")
    assert (batching["ratio"], batching["low"], batching["high"]) == (2.0, 2.0, 4.0)
    assert bench_sweep.speedup(times, "batched", "forked")["ratio"] == 3.0


def test_answers_are_equal_tied_or_unequal():
    """Of five cells one has another token with its two best far apart, one with them close."""
    cells = [Cell(plan, 0) for plan in range(5)]
    looped = [torch.tensor([0.0, 9.0, 10.0])] * 5  # the token is 2
    forked = torch.tensor(
        [[[2, 10, 9, 10]], [[1, 10, 9, 10]], [[1, 10, 9.99995, 10]], [[2, 10, 0, 10]], [[2, 10, 0, 10]]]
    )  # fmt: skip
    exact = torch.tensor([[[0.0, 9.0, 10.0]], [[0.0, 9.5, 10.0]]]).double()
    found = bench_sweep.compared(cells, looped, forked, exact, tie=1e-5)
    assert found == (5, 1, 1, pytest.approx(0.05))


# -- peers ----------------------------------------------------------------------------------------


def test_what_a_peer_adds_is_of_paired_steps_and_of_a_layer(monkeypatch):
    times = {
        "stock": [1000.0, 2000.0, 1000.0], "stock again": [1000.0, 2000.0, 1000.0], "hook": [1300.0, 2600.0, 1300.0],
        "steerfast": [500.0, 1000.0, 500.0], "steerfast again": [500.0, 1000.0, 500.0],
    }  # fmt: skip

    @contextmanager
    def steppers(runners, *given):
        assert runners.keys() == times.keys()
        yield {name: SimpleNamespace(step=None) for name in runners}

    monkeypatch.setattr(bench_peers, "steppers", steppers)
    monkeypatch.setattr(bench_peers, "single_calls", lambda versions, steps: times)
    peers = {"hook": None, "steerfast": None}
    model = random_model("thin", torch.float32, 8)
    lines = bench_peers.timed("thin", model, None, peers, layers=3, batch=2, steps=3)
    by_peer = {line["peer"]: line for line in lines}
    assert by_peer.keys() == {"stock", "hook", "steerfast"}
    hook = by_peer["hook"]
    assert hook["ms"]["median"] == 1.3
    assert hook["over_steerfast"]["ratio"] == 2.6
    assert hook["over_stock"]["ratio"] == 1.3
    assert hook["added_us"]["median"] == 100.0
    assert by_peer["steerfast"]["added_us"]["median"] == pytest.approx(-500 / 3)
    assert by_peer["steerfast"]["a_over_a"]["ratio"] == 1.0


def test_who_is_fastest():
    """Of those who steer: the least ratio in a row, and the least geometric mean over all."""

    def line(peer, batch, ratio):
        about = {"bench": "peers step", "model": "m", "vectors": 1, "operation": "add"}
        return about | {"peer": peer, "batch": batch, "over_steerfast": {"ratio": ratio}}

    lines = [
        line(peer, batch, ratio)
        for peer, ratios in (
            ("stock", (0.1, 0.1)), ("steerfast", (1.0, 1.0)), ("steerfast, a plan a row", (0.2, 0.2)),
            ("hook", (0.9, 1.5)), ("paper", (2.0, 0.4)),
        )
        for batch, ratio in enumerate(ratios)
    ]  # fmt: skip
    assert bench_peers.fastest(lines) == {
        "m, 1 x add, batch 0": "hook",
        "m, 1 x add, batch 1": "paper",
    }
    assert bench_peers.overall(lines) == "paper"  # sqrt(2 x 0.4) < 1 < sqrt(0.9 x 1.5)


# -- serving --------------------------------------------------------------------------------------


class Engine:
    """Answers with the seconds that it is told; ``started``: what was asked of it."""

    def __init__(self, step, prompt):
        self.step, self.prompt, self.started = step, prompt, []
        self.connection = SimpleNamespace(recv=lambda: "up", send=lambda command: None)

    def ask(self, word, *rest):
        if word == "start":
            self.started.append(rest)
            return self.prompt
        return self.step if word == "step" else 0.0


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(bench_serving, "PAUSE", 0.0)


def test_serving_compares_paired_steps(no_pause):
    stock, other = Engine(0.010, 0.2), Engine(0.008, 0.3)
    found = bench_serving.compare(stock, other, "distinct", load=4, steps=20, rounds=2)
    assert found["step_over_stock"]["ratio"] == pytest.approx(0.8)
    assert found["step_a_a"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert found["prompt_over_stock"]["ratio"] == pytest.approx(1.5)
    assert found["step_ms"]["other"]["median"] == 8.0
    assert found["tokens_per_second"] == 4 / 0.008
    assert found["prompt_tokens_per_second"] == pytest.approx(
        4 * bench_serving.PROMPT / 0.3, abs=0.1
    )
    assert set(other.started) == {("distinct", 4)}
    assert set(stock.started) == {("idle", 4)}


def test_serving_says_the_ratios_of_the_default_mode(no_pause, monkeypatch, capsys):
    """From end to end but for the engines, which take vLLM."""
    steps = {"stock": 0.010, "fused": 0.009, "exact": 0.012}
    engines = [Engine(step, 0.1) for step in steps.values()]
    waiting = iter(engines)
    monkeypatch.setattr(bench_serving, "Engine", lambda *given: next(waiting))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    bench_serving.main(["--quick", "--json", "--model", "folder"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["idle_over_stock"] == said["distinct_over_stock"] == pytest.approx(0.9)
    assert {load for engine in engines for _, load in engine.started} == {8}
