"""Turns, by a clock that the versions themselves put forward; what series of times come to; what moved between two commits."""

from __future__ import annotations

import json
import statistics
from itertools import groupby
from types import SimpleNamespace

import pytest

from harness import regression, results, timing
from harness.spreads import ratio_interval, ratio_of, spread, summary


class Clock:
    """Stands still but for what is called under it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def perf_counter(self):
        return self.now

    def version(self, name, *seconds):
        """Takes so long; the next time the next of these, and then from the start again."""
        taken = list(seconds)

        def call():
            self.order.append(name)
            self.now += taken[0]
            taken.append(taken.pop(0))

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(timing.torch.cuda, "is_available", lambda: False)
    return clock


def test_rounds_give_what_a_call_takes(clock):
    versions = {"slow": clock.version("slow", 7e-4), "fast": clock.version("fast", 2e-4)}
    times = timing.in_turn(versions, rounds=4, round_seconds=0.01)
    assert times == {"slow": pytest.approx([700] * 4), "fast": pytest.approx([200] * 4)}
    _, _, *blocks = [(name, len(list(same))) for name, same in groupby(clock.order)]  # but warm-ups
    n, m = blocks[0][1], blocks[1][1] // 2
    assert blocks == [("slow", n), ("fast", 2 * m), ("slow", 2 * n), ("fast", 2 * m), ("slow", n)]
    assert n == pytest.approx(0.01 / 7e-4, abs=1)  # as many calls as fill a round's time
    assert m == pytest.approx(0.01 / 2e-4, abs=1)


def test_summed_up_they_are_percentiles(clock):
    found = timing.interleave({"one": clock.version("one", 5e-5)}, rounds=3, round_seconds=1e-3)
    assert found["one"] == pytest.approx({"median": 50, "p20": 50, "p80": 50})


def test_single_calls_give_the_time_of_each(clock):
    versions = {"even": clock.version("even", 1e-3), "odd": clock.version("odd", 1e-3, 3e-3)}
    times = timing.single_calls(versions, 4)
    assert times["even"] == pytest.approx([1000] * 4)
    assert times["odd"] == pytest.approx([1000, 3000] * 2)


def test_versions_take_turns_and_none_is_always_first(clock):
    times = timing.single_calls({name: clock.version(name, 1e-3) for name in "abc"}, 6)
    counted = clock.order[3 * timing.WARM :]
    assert {name: counted.count(name) for name in "abc"} == {"a": 6, "b": 6, "c": 6}
    assert len({counted[start] for start in range(0, 18, 3)}) > 1
    assert {name: len(series) for name, series in times.items()} == {"a": 6, "b": 6, "c": 6}
    assert [timing.rotated(list("abc"), number)[0] for number in range(4)] == list("abca")


# -- what series come to --------------------------------------------------------------------------


def test_summaries_are_percentiles():
    series = [float(value) for value in range(1, 102)]
    assert summary(series) == {"median": 51.0, "p20": 21.0, "p80": 81.0}
    assert statistics.median(series) == 51
    assert summary([3.0]) == {"median": 3.0, "p20": 3.0, "p80": 3.0}


def test_ratios_are_taken_round_by_round():
    """A drift that both versions share leaves their ratio alone."""
    drift = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    ratio = ratio_of([2 * each for each in drift], drift)
    assert ratio == {"ratio": 2.0, "p20": 2.0, "p80": 2.0}


def test_an_interval_holds_the_ratio_of_medians():
    below = [1.0 + 0.01 * (number % 5) for number in range(101)]
    above = [1.5 * each for each in below]
    assert ratio_interval(above, above) == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    found = ratio_interval(above, below)
    assert found["ratio"] == pytest.approx(1.5)
    noisy = ratio_interval([each + 0.5 * (number % 3) for number, each in enumerate(above)], below)
    assert noisy["low"] < noisy["ratio"] < noisy["high"]
    assert noisy["ratio"] > found["ratio"]


def test_how_figures_are_written():
    assert spread({"median": 1.24, "p20": 1.0, "p80": 2.0}) == "1.2 [1.0, 2.0]"
    assert spread({"ratio": 4.0, "low": 3.0, "high": 5.0}, 2, "x") == "4.00x [3.00, 5.00]"


# -- two commits ----------------------------------------------------------------------------------


def line(commit, ratio, spread, **more):
    figure = {"ratio": ratio, "p20": ratio - spread, "p80": ratio + spread}
    us = {"median": 10 * ratio, "p20": 10 * ratio - 0.1, "p80": 10 * ratio + 0.1}
    return {
        "bench": "ops", "form": "additive", "N": 1, "us": {"steered": us}, "ratios": {"speedup": figure},
        "commit": commit, "device": "a", "date": commit, "versions": {}, "seed": 0, **more,
    }  # fmt: skip


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Results of three commits."""
    lines = [
        line("aaa", 4.0, 0.1), line("aaa", 4.0, 0.1, N=64), line("bbb", 4.15, 0.1, rounds=7), line("bbb", 5.0, 0.1, N=64),
        line("ccc", 3.0, 0.1), line("ccc", 3.0, 0.1, device="b"),
    ]  # fmt: skip
    (tmp_path / "ops.jsonl").write_text("\n".join(json.dumps(one) for one in lines))
    for module in (results, regression):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return lines


def test_what_moved_between_two_commits(history):
    moves = {(move.case, move.figure): move.verdict for move in regression.compare("aaa", "bbb")}
    assert sorted(moves.values()) == ["higher", "same"]
    assert regression.compare("bbb", "ccc")[0].verdict == "lower"
    assert len(regression.compare("bbb", "ccc")) == 1  # N = 64 and device b were measured once only
    with_times = regression.compare("aaa", "bbb", times=True)
    assert len(with_times) == 4
    said = regression.view(with_times)
    assert "speedup higher, 4.000 [3.900, 4.100] -> 5.000 [4.900, 5.100]" in said
    assert said.endswith("4 figures compared, 1 the same within their spreads")


def test_a_commit_without_results_is_an_error(history):
    with pytest.raises(ValueError, match="no results of commit ddd; there are: aaa, bbb, ccc"):
        regression.compare("aaa", "ddd")


def test_a_table_holds_one_commit_of_each_device(history):
    found = results.newest("ops", "form", "N")
    assert [(one["commit"], one["device"], one["N"]) for one in found] == [
        ("ccc", "a", 1),
        ("ccc", "b", 1),
    ]
