"""The documents' tables and plots are those of the results."""

from __future__ import annotations

import json
import re

import pytest

import report
from harness import results
from tables import charts, gpu_runs, speed


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_tables_equal_the_committed_results(path):
    text = path.read_text(encoding="utf-8")
    assert report.filled(text) == text, "run: python benchmarks/report.py --write"
    row = r"(<!-- results:[\w-]+ -->\n(?:\|.*\n){2}\|.*?)\d"
    changed = re.sub(row, r"\g<1>7777", text, count=1)
    assert changed != text
    assert report.filled(changed) == text  # a figure that somebody edits by hand is found


def test_every_table_stands_once():
    readme, full = (
        re.findall(r"<!-- results:([\w-]+) -->", path.read_text(encoding="utf-8"))
        for path in report.DOCUMENTS
    )
    assert readme == ["speed", "backends"]
    assert sorted(full + readme) == sorted(report.TABLES)


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
    for path in results.RESULTS.glob("*.jsonl"):
        for line in results.every(path.stem):
            assert {"commit", "device", "versions", "seed", "date"} <= line.keys(), path.name
            assert line["commit"]


def lines_shown(name):
    """All lines of the newest commit of each device."""
    lines = results.every(name)
    commits = {line["device"]: line["commit"] for line in lines}
    return [line for line in lines if line["commit"] == commits[line["device"]]]


@pytest.mark.parametrize("name", [path.stem for path in results.RESULTS.glob("*.jsonl")])
def test_figures_in_tables_come_from_seven_rounds(name):
    shown = lines_shown(name)
    assert shown
    for line in shown:
        assert line.get("rounds", 7) >= 7, line
        assert line.get("steps", 7) >= 7, line


# Computed, or without a clock; and README's, whose figures stand in the others beside their controls. What is of GPUs has
# controls too, once there is something (test_brought_back.py).
WITHOUT_CONTROL = {
    "agreement", "defects", "peer-costs", "peer-notes", "cost-model", "predictions", "sass", "speed", "backends", "gpu-stages",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(report.TABLES.keys() - WITHOUT_CONTROL))
def test_tables_of_times_have_a_control(name):
    table = report.TABLES[name]()
    assert "A/A" in table or table == gpu_runs.NOT_YET


def test_no_peer_is_faster_than_steerfast_by_more_than_its_spread():
    """The claim below the peers' table, and its count, on the committed results."""
    steps = [line for line in lines_shown("peers") if line["bench"] == "peers step"]
    ours = ("steerfast", "stock")
    others = [line["over_steerfast"] for line in steps if not line["peer"].startswith(ours)]
    assert min(one["high"] for one in others) >= 1
    slower = sum(one["low"] > 1 for one in others)
    said = " ".join(report.DOCUMENTS[1].read_text(encoding="utf-8").split())
    assert f"of {len(others)} intervals {slower} lie above 1" in said


# -- README's table -------------------------------------------------------------------------------


def test_the_small_table_fits_a_narrow_page():
    lines = speed.speed().splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].count("|") - 1 <= 6
    assert sum(line.startswith("|") for line in lines) - 2 == len(speed.ROWS)
    assert "commit" in lines[-1]


def test_the_small_table_is_of_one_machine(monkeypatch, tmp_path):
    """The one that was measured last, of those where nothing is missing; a ratio is the other's time over ours."""
    for name in ("decode", "ops", "peers", "extract", "sweep"):
        lines = [line | {"device": "first", "commit": "aaa"} for line in lines_shown(name)]
        if name != "sweep":
            lines += [line | {"device": "second"} for line in lines]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    wanted = speed.speed().splitlines()
    (*_, step) = (line for line in lines_shown("decode") if line["operator"] == "add")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    found = speed.speed().splitlines()
    assert found[:-1] == wanted[:-1]
    assert found[-1].startswith("first; ")
    assert step["batch"] == 16
    (row,) = (line for line in found if "of 16 rows" in line)
    assert f"{1 / step['ratios']['steered_over_stock']['ratio']:.2f} [" in row


# -- documents ------------------------------------------------------------------------------------


def test_a_marker_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="no table 'nothing'"):
        report.filled("<!-- results:nothing -->\n<!-- /results:nothing -->")
    with pytest.raises(ValueError, match="its end is missing"):
        report.filled("<!-- results:ops -->\n")
