"""Every script runs from end to end at ``--quick``, on small shapes and with a few calls, and its last line is what it promises.

What the times come to is test_arithmetic.py's matter: a machine may be as slow here as it likes.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench_decode
import bench_extract
import bench_ops
import bench_peers
import bench_roofline
import bench_router
import bench_scale
import bench_sweep
import report
from harness import results, shapes, timing
from peers import agreement

FOLDER = Path(report.__file__).parent
NARROW = 64


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """One call a round, a width of 64, and results in a folder of the test's own."""
    monkeypatch.setattr(timing, "_calls_for", lambda function, seconds: 1)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setitem(shapes.SHAPES, "thin", shapes.SHAPES["thin"] | {"hidden_size": NARROW})
    for script in (bench_roofline, bench_scale):
        monkeypatch.setattr(script, "WIDTH", NARROW)
    monkeypatch.setattr(bench_ops, "WIDE", NARROW)
    monkeypatch.setattr(bench_roofline, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(bench_scale, "STEPS", 4)
    monkeypatch.setattr(bench_decode, "QUICK_STEPS", 3)
    monkeypatch.setattr(bench_peers, "STEPS", {1: 2, 8: 2})
    monkeypatch.setattr(bench_peers, "THIN_STEPS", 8)


@pytest.fixture
def run(capsys):
    """A script's ``main``: the object that it prints, and the lines that it saves."""

    def run(script, *arguments):
        script.main([*arguments, "--quick", "--json", "--save"])
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["device"]
        finite(said)
        lines = results.every(script.__name__.removeprefix("bench_"))
        assert lines
        for line in lines:
            assert {"commit", "device", "versions", "seed", "date", "threads"} <= line.keys()
            finite(line)
        return said, lines

    return run


def finite(said):
    """No figure is infinite or not a number, and no time or ratio of times is negative or nothing."""
    for key, value in said.items() if isinstance(said, dict) else enumerate(said):
        if isinstance(value, dict | list):
            finite(value)
        elif isinstance(value, float):
            assert math.isfinite(value), key
            if key in ("ratio", "low", "high"):
                assert value > 0, key


def positive(figure):
    assert 0 < figure["p20"] <= figure["median"] <= figure["p80"]


def test_ops(run):
    said, lines = run(bench_ops)
    assert said["speedup_vs_eager"].keys() == {"N1", "N64"} == said["a_over_a"].keys()
    assert said["steered_over_unsteered"] > 0
    assert said["k16_over_k1"] == said["k16_over_k1_by_rows"]["N1"] > 0
    assert len(lines) == 4 + 2
    for line in lines:
        for figure in line["us"].values():
            positive(figure)
    assert report.TABLES["ops"]().count("\n| additive") == 2


@pytest.mark.parametrize(
    "how",
    [
        ("--mode", "eager"),
        ("--operator", "clamp", "--vectors", "8"),
        ("--mode", "graph", "--layers", "1"),
    ],
)
def test_decode(run, how):
    said, (line,) = run(bench_decode, "--shape", "tiny", "--dtype", "float32", *how)
    assert {
        "steered_over_patched",
        "steered_over_stock",
        "a_over_a",
        "intervals",
        "ms",
    } <= said.keys()
    assert said["cases"] == 1
    assert line["batch"] == line["distinct"] == 16
    assert ("hooks" in line["ms"]) == (line["operator"] == "add") == ("without reads" in line["ms"])
    assert line["model"] == ("tiny shape, 1 layers, random" if "--layers" in how else "tiny shape, random")  # fmt: skip
    for figure in (*line["ms"].values(), *line["op_us"].values()):
        positive(figure)
    assert line["model"] in report.TABLES["decode"]()


def stopped_after(number):
    """A stand-in for what measures, that is stopped at a later call: it is given the true one."""

    def of(measure):
        calls = []

        def measured(*given, **named):
            calls.append(given)
            if len(calls) > number:
                raise KeyboardInterrupt
            return measure(*given, **named)

        return measured

    return of


@pytest.mark.parametrize(
    ("script", "measures", "arguments", "lines"),
    [
        (bench_ops, "versions", (), 1),
        (bench_roofline, "measured", (), 1),
        (bench_scale, "series_line", (), 1),
        (bench_peers, "timed", ("--environments",), 5),  # all peers of one model and batch
        (bench_decode, "measured", ("--shape", "tiny", "--mode", "eager", "graph"), 1),
        (bench_sweep, "in_turn", ("--shape", "tiny", "--prompts", "1", "--behaviours", "sycophancy", "myopic"), 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_was_measured_is_saved_when_a_script_is_stopped(
    monkeypatch, script, measures, arguments, lines
):
    monkeypatch.setattr(script, measures, stopped_after(1)(getattr(script, measures)))
    if script is bench_peers:
        monkeypatch.setattr(script, "facts", lambda *given: [])
    quick = () if script is bench_sweep else ("--quick",)
    with pytest.raises(KeyboardInterrupt):
        script.main([*arguments, *quick, "--save"])
    assert len(results.every(script.__name__.removeprefix("bench_"))) == lines


def test_peers(run, monkeypatch):
    """With no library installed: what steerfast and a hook would stand beside. Of the cases a few (test_peers.py has all)."""
    few = {name: agreement.CASES[name] for name in ("batch 1", "decode", "undone")}
    monkeypatch.setattr(agreement, "CASES", few)
    said, lines = run(bench_peers, "--environments")
    assert set(said["fastest_by_row"].values()) <= {"hook", "paper", "steerfast"}
    assert said["fastest"] in ("hook", "paper", "steerfast")
    facts = {row["peer"]: row for row in said["rows"] if "agreement" in row}
    assert set(facts["steerfast"]["agreement"].values()) == {"ok"}
    assert facts["hook"]["agreement"]["decode"] == "ok"
    assert facts["hook"]["kernels"] == 1
    assert facts["paper"]["kernels"] == 2
    assert facts["steerfast"]["kernels"] < -16  # a layer's two adds and norms are two ops
    assert facts["steerfast"]["syncs"] == 0
    timed = [row for row in said["rows"] if "ms" in row]
    assert {(row["vectors"], row["batch"]) for row in timed} == {(1, 1), (1, 8), (5, 1), (5, 8)}
    assert all(row["ms"] > 0 for row in timed)
    assert len(lines) == len(said["rows"])


def test_roofline(run):
    said, lines = run(bench_roofline)
    assert len(said["over_floor"]) == len(lines) == 9
    assert said["memory"] > 0
    for line in lines:
        positive(line["floor"])
    assert report.TABLES["roofline"]().count("steer_add_rms_norm") == 9


def test_scale(run):
    said, lines = run(bench_scale)
    assert said["fits"].keys() == {"rows N", "constant vectors K", "layers steered"}
    points = {line["quantity"]: list(line["us"]) for line in lines}
    assert points["rows N"] == [str(n) for n in bench_scale.ROWS]
    assert points["layers steered"] == [str(count) for count in bench_scale.STEERED]
    assert "layers steered" in report.TABLES["scale"]()


def test_extract(run, tiny_folder):
    said, lines = run(bench_extract, "--no-peers", "--model", str(tiny_folder))
    assert said["error"] < 1e-4
    methods = ["one text", "batched", "steerfast"]
    assert said["over_steerfast"].keys() == {f"questions, {method}" for method in methods}
    assert said["over_steerfast"]["questions, steerfast"] == 1
    for line in lines:
        assert (line["count"], line["layers"]) == (2, 4 if line["method"] == "steerfast" else 3)
        assert line["error"] < 1e-4
        assert line["cosine"] == pytest.approx(1, abs=1e-6)
        positive(line["seconds"])


def test_router(run):
    said, (line,) = run(bench_router, "--requests", "4", "16")
    assert said["requests"] == line["plans"] == 16
    assert said["us"].keys() == {"route", "route again", "fill", "python"}
    for figure in said["us"].values():
        positive(figure)
    assert report.TABLES["router"]().count("\n| 16 |") == 1


def test_sweep(run):
    said, (line,) = run(bench_sweep, "--shape", "tiny", "--dtype", "float32", "--prompts", "1")
    assert said["answers_equal"] is True
    assert said["unequal"] == 0
    assert said["checked"] > 10
    assert said["speedup"] > 0
    assert said["max_relative_logit_gap"] < 1e-5
    assert line["plans"] == 160
    assert report.TABLES["sweep"]().count("\n| tiny") == 1


def test_a_script_is_run_by_its_path():
    """From elsewhere too, with nothing on the path but what Python puts there: the folder of the script."""
    command = [sys.executable, str(FOLDER / "bench_router.py"), "--requests", "2"]
    done = subprocess.run(
        [*command, "--quick", "--json"], capture_output=True, text=True, cwd=FOLDER.parents[1]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["requests"] == 2


def test_every_script_is_run_here_and_named_in_the_readme():
    scripts = {path.stem for path in FOLDER.glob("bench_*.py")}
    here = Path(__file__).read_text(encoding="utf-8")
    with_vllm = {"bench_serving", "bench_hostile"}  # tried in test_arithmetic.py and tests/serving
    assert scripts - with_vllm == set(re.findall(r"^import (bench_\w+)", here, re.MULTILINE))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert scripts == set(re.findall(r"^\| `(bench_\w+)\.py`", readme, re.MULTILINE))
