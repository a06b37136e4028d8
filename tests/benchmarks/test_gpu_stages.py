"""The stages of ``gpu_check.sh``: all of them on the CPU, from end to end, and what each is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gpu import check, keeping
from gpu.stages import STAGES
from harness import brought_back

BENCHMARKS = Path(check.__file__).parents[1]


def in_the_archive(out):
    """{stage: how it ended} and {name: text} of all that is in it."""
    with tarfile.open(out / keeping.ARCHIVE) as archive:
        files = {one.name: archive.extractfile(one).read().decode() for one in archive.getmembers()}
    return {one["name"]: one for one in json.loads(files[keeping.RECORD])["outcomes"]}, files


def test_every_stage_runs_without_a_gpu(tmp_path):
    """The script itself, from end to end, at sizes that say nothing: kernels emulated, graphs recorded, tools left out."""
    emulator = spec_of(BENCHMARKS.parent / "tests/ops/emulation/build.py")
    if emulator.missing():
        pytest.skip(emulator.missing())
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu_check.sh"), "100000", str(out), "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found, files = in_the_archive(out)
    assert list(found) == in_order_of_ending()
    results = {one["result"] for one in found.values()}
    assert results == {"passed", "skipped"}
    assert found["build"]["result"] == "skipped"  # the libraries are there, or emulated
    assert found["conformance-cuda"]["said"].startswith("3 of 3 passed, 0 failed")
    assert {
        "results/decode.jsonl",
        "results/gpu_ops.jsonl",
        "results/gpu_check.jsonl",
    } <= files.keys()
    modes = [json.loads(line)["mode"] for line in files["results/decode.jsonl"].splitlines()]
    assert modes == ["graph", "graph", "compiled-graph"]
    with pytest.raises(ValueError, match="is of a dry run"):
        brought_back.merge(out)


def in_order_of_ending():
    """The stages' names; one in the background ends before the first that is after it."""
    names = [one.name for one in STAGES if not one.background]
    for one in STAGES:
        if one.background:
            first = next(other.name for other in STAGES if one.name in other.after)
            names.insert(names.index(first), one.name)
    return names


def spec_of(path):
    spec = importlib.util.spec_from_file_location("builder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_most_valuable_stages_fit_a_run():
    """Of ten minutes, less what starting takes: those up to the decode step, one after the other, at their limits."""
    names = [one.name for one in STAGES]
    assert names.index("smoke") < names.index("conformance-cuda") < names.index("decode")
    in_turn = [one for one in STAGES if not one.background and one.unneeded is None]
    upto = in_turn[: [one.name for one in in_turn].index("decode") + 1]
    assert sum(one.seconds for one in upto) <= 560 - check.RESERVE
    assert [one.name for one in STAGES if one.gate] == ["build", "smoke"]


@pytest.mark.parametrize(
    "one", [one for one in STAGES if one.command[0] == "-m"], ids=lambda one: one.name
)
def test_a_stage_that_can_say_how_far_it_came_is_told_how_long_it_has(one):
    source = (BENCHMARKS / f"{one.command[1].replace('.', '/')}.py").read_text()
    assert ('"--seconds"' in source and "--timed" not in one.command) == (
        "{seconds}" in one.command
    )
    assert "so far: " in source or one.name == "gpu-tests"
