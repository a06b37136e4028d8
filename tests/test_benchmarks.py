"""The benchmarks run, quickly, and their last line is what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


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
