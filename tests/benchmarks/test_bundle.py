"""What is taken along to a machine with a GPU: the sources of a run, links resolved, the commit, within the size that travels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpu import bundle


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    target = tmp_path_factory.mktemp("bundle") / "gpu-bundle"
    (target / "old").mkdir(parents=True)
    bundle.lay_out(target, "abc1234")
    return target


def test_what_a_run_needs_is_there(laid_out):
    for name in ("benchmarks/gpu_check.sh", "benchmarks/gpu/check.py", "steerfast/ops/fused.py", "tests/conftest.py"):  # fmt: skip
        assert (laid_out / name).read_bytes() == (bundle.ROOT / name).read_bytes()
    assert (laid_out / "steerfast/kernels/steer_add_rms_norm.py").exists()
    assert not any(path.is_symlink() for path in laid_out.rglob("*"))  # a link may travel as one
    assert not (laid_out / "old").exists()
    assert not (laid_out / "benchmarks/results").exists()
    assert not list(laid_out.rglob("*.so"))  # none of this machine's


def test_it_runs_by_its_own_sources_and_says_its_commit(laid_out, tmp_path):
    """From anywhere; the stage that is run needs no library."""
    command = ["bash", str(laid_out / "benchmarks/gpu_check.sh"), "1000", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--dry-run", "--only", "gpu-tests"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpu-tests: passed" in done.stdout
    told = subprocess.run(
        [sys.executable, "-c", "from gpu import check; print(check._surroundings('x', False)['STEERFAST_COMMIT'])"],
        capture_output=True, text=True, cwd=laid_out / "benchmarks",
    )  # fmt: skip
    assert told.stdout == "abc1234\n"


def test_a_library_that_is_missing_or_too_large_does_not_travel(laid_out, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="has no steerfast/lib/libsteerfast_cpu"):
        bundle.check(laid_out)
    for name in bundle.BUILT:
        path = tmp_path / name.replace("*", "cpython-312-x86_64-linux-gnu")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    assert bundle.check(tmp_path) == 3000
    monkeypatch.setattr(bundle, "MOST", 2999)
    with pytest.raises(SystemExit, match="it has to travel"):
        bundle.check(tmp_path)


def test_the_sources_are_small(laid_out):
    assert sum(path.stat().st_size for path in laid_out.rglob("*") if path.is_file()) < 6 << 20


def test_libraries_are_built_there_for_one_architecture(laid_out, monkeypatch):
    called = []
    monkeypatch.setattr(
        bundle.subprocess, "run", lambda command, **how: called.append((command, how))
    )
    bundle.build(laid_out)
    ((command, how),) = called
    assert command[1:] == ["setup.py", "build_ext", "--inplace"]
    assert Path(how["cwd"]) == laid_out
    assert (how["env"]["STEERFAST_BUILD"], how["env"]["STEERFAST_CUDA_ARCHS"]) == ("cuda", "90")
    assert not (laid_out / "build").exists()
