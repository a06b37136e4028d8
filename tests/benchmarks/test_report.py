"""The documents' tables and plots are those of the results, and two commits can be told apart."""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    import charts
    import cost_model
    import harness
    import regression
    import report
    import results_of
finally:
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_tables_equal_the_committed_results(path):
    text = path.read_text(encoding="utf-8")
    assert report.filled(text) == text, "run: python benchmarks/report.py --write"
    changed = re.sub(r"(\| bfloat16 \|.*?)\d", r"\g<1>7777", text, count=1)
    assert changed != text
    assert report.filled(changed) == text  # a figure that somebody edits by hand is found


def test_every_table_stands_somewhere():
    texts = "".join(path.read_text(encoding="utf-8") for path in report.DOCUMENTS)
    assert set(re.findall(r"<!-- results:([\w-]+) -->", texts)) == set(report.TABLES)


@pytest.mark.parametrize("name", charts.CHARTS)
def test_plots_show_the_committed_results(name):
    data, _ = charts.CHARTS[name]
    drawn = (charts.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert f"<!-- figures {charts.digest(data())} -->" in drawn, (
        "run: python benchmarks/report.py --write"
    )
    assert charts.digest(data()) != charts.digest([data()])
    assert f"benchmarks/{name}.svg" in report.DOCUMENTS[1].read_text(encoding="utf-8")


def test_results_say_where_they_come_from():
    for path in results_of.RESULTS.glob("*.jsonl"):
        for line in results_of.every(path.stem):
            assert {"commit", "device", "versions", "seed", "date"} <= line.keys(), path.name
            assert line["commit"]


def test_figures_in_tables_come_from_seven_rounds_and_have_a_control():
    for name in ("roofline", "extract", "sweep", "ops"):
        for line in results_of.newest(name):
            assert line.get("rounds", 7) >= 7, line
    for name in ("peers", "decode", "scale"):
        for line in results_of.newest(name):
            assert line.get("steps", 7) >= 7, line
    for table in report.TABLES:
        if table not in (
            "agreement",
            "defects",
            "peer-costs",
            "peer-notes",
            "cost-model",
            "predictions",
        ):
            assert re.search("A/A", report.TABLES[table]()), f"{table} shows no control"


def test_no_peer_is_faster_than_steerfast_by_more_than_its_spread():
    """The claim of README's table, and its count, on the committed results."""
    keys = ("bench", "environment", "peer", "model", "operation", "vectors", "batch")
    steps = [line for line in results_of.newest("peers", *keys) if line["bench"] == "peers step"]
    ours = ("steerfast", "stock")
    others = [line["over_steerfast"] for line in steps if not line["peer"].startswith(ours)]
    assert min(one["high"] for one in others) >= 1
    slower = sum(one["low"] > 1 for one in others)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"of {len(others)} intervals {slower} lie above 1" in readme


def test_a_marker_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="no table 'nothing'"):
        report.filled("<!-- results:nothing -->\n<!-- /results:nothing -->")
    with pytest.raises(ValueError, match="its end is missing"):
        report.filled("<!-- results:ops -->\n")


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
    for module in (results_of, regression):
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
    found = results_of.newest("ops", "form", "N")
    assert [(one["commit"], one["device"], one["N"]) for one in found] == [
        ("ccc", "a", 1),
        ("ccc", "b", 1),
    ]


# -- figures --------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round():
    """A drift that both versions share leaves their ratio alone."""
    drift = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    ratio = harness.ratio_of([2 * each for each in drift], drift)
    assert ratio == {"ratio": 2.0, "p20": 2.0, "p80": 2.0}


def test_versions_take_turns_and_none_is_always_first():
    order = []
    times = harness.single_calls({name: lambda name=name: order.append(name) for name in "abc"}, 6)
    counted = order[6:]
    assert {name: counted.count(name) for name in "abc"} == {"a": 6, "b": 6, "c": 6}
    assert len({counted[start] for start in range(0, 18, 3)}) > 1
    assert {name: len(series) for name, series in times.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_line_through_points():
    points = {float(x): [2 + 0.5 * x + noise for noise in (-0.01, 0, 0.01)] for x in (1, 4, 9)}
    fit = cost_model.fit_line(points)
    assert fit["at_zero"] == pytest.approx(2)
    assert fit["slope"]["median"] == pytest.approx(0.5)
    assert fit["r2"] == pytest.approx(1)


def test_the_model_of_cost_finds_what_made_the_times():
    rng = random.Random(0)
    truth = 3.0, 0.02, 2e-5
    shapes = [(n, 4096) for n in (1, 4, 16, 64, 256, 1024)] + [(64, d) for d in (576, 1024, 2048)]
    times = {at: cost_model.cost(truth, *at, 2) * rng.uniform(0.99, 1.01) for at in shapes}
    found = cost_model.fit_cost(times, 2)
    assert found == pytest.approx(truth, rel=0.1)
    assert cost_model.cost(found, 64, 8192, 2) == pytest.approx(
        cost_model.cost(truth, 64, 8192, 2), rel=0.05
    )
    flat = cost_model.fit_cost(dict.fromkeys(shapes, 5.0), 2)
    assert min(flat) >= 0
    assert cost_model.cost(flat, 64, 8192, 2) == pytest.approx(5.0, rel=1e-6)


def test_shapes_have_the_parameters_that_their_names_say():
    sizes = {llama.name: llama.parameters / 1e9 for llama in cost_model.LLAMAS}
    assert sizes["Llama-2-7B"] == pytest.approx(6.74, rel=0.01)
    assert sizes["Llama-2-13B"] == pytest.approx(13.0, rel=0.01)
    assert sizes["Llama-2-70B"] == pytest.approx(69.0, rel=0.01)


def test_eight_ranks_pay_for_the_stream_what_one_pays():
    models = {"steered": (2.0, 0.1, 1e-5), "unsteered": (2.0, 0.05, 1e-5)}
    made = cost_model.predictions(models, 2, 1e10)
    pair = [one for one in made if (one["model"], one["batch"]) == ("Llama-2-70B", 64)]
    assert [one["ranks"] for one in pair] == [1, 8]
    assert pair[0]["added_us"] == pair[1]["added_us"] == pytest.approx(80 * 64 * 0.05)
    assert pair[1]["share"] == pytest.approx(8 * pair[0]["share"])
    assert pair[0]["weights_us"] == pytest.approx(1e6 * cost_model.LLAMAS[2].parameters * 2 / 1e10)


def test_summaries_are_percentiles():
    series = [float(value) for value in range(1, 102)]
    assert harness.summary(series) == {"median": 51.0, "p20": 21.0, "p80": 81.0}
    assert statistics.median(series) == 51
