"""The benchmarks run, quickly, and their last line is what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def last_line(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments, "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", [("--mode", "eager"), ("--operator", "clamp", "--vectors", "8")])
def test_decode(how):
    said = last_line("bench_decode.py", "--shape", "tiny", "--dtype", "float32", *how)
    assert 0.3 < said["steered_over_patched"] < 3
    assert 0.3 < said["steered_over_stock"] < 3
    assert {"a_over_a", "intervals", "ms", "device"} <= said.keys()


def test_peers():
    """With no library installed: what steerfast and a hook would stand beside."""
    said = last_line("bench_peers.py", "--environments")
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
    assert all(0 < row["ms"] < 1e4 for row in timed)


def test_roofline():
    said = last_line("bench_roofline.py")
    assert len(said["over_floor"]) == 9
    # Nothing moves its bytes much faster than a copy does; a busy machine may be slower without limit.
    assert all(one["p80"] > 0.5 for one in said["over_floor"].values())
    assert said["memory"] > 1e8


def test_scale():
    said = last_line("bench_scale.py")
    assert {"rows N", "constant vectors K", "layers steered"} <= said["fits"].keys()
    assert said["fits"]["rows N"]["slope"]["median"] > 0


@pytest.mark.model
def test_extract():
    said = last_line("bench_extract.py", "--no-peers")
    assert said["error"] < 1e-5
    assert {"questions, one text", "questions, batched", "questions, steerfast"} <= said[
        "over_steerfast"
    ].keys()


def test_router():
    said = last_line("bench_router.py")
    assert said["requests"] == 256
    assert 0 < said["us"]["route"]["median"] < 5_000  # the bar is 50; a busy machine is slower


def test_sweep():
    said = last_line("bench_sweep.py", "--shape", "tiny", "--dtype", "float32")
    assert said["answers_equal"] is True
    assert said["checked"] > 10
    assert said["speedup"] > 1
    assert said["speedup"] == pytest.approx(said["batching"] * said["forking"], rel=0.05)
    assert said["max_relative_logit_gap"] < 1e-5
