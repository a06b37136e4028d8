"""What is shipped: the wheel's contents, the link, the build switch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_kernels_is_a_link_without_an_init():
    link = ROOT / "steerfast" / "kernels"
    assert link.is_symlink()
    assert os.readlink(link) == "../kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()


def test_a_pure_wheel_holds_everything(tmp_path):
    environment = {**os.environ, "STEERFAST_BUILD": "none"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [
        *(f"steerfast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")),
        *(
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "steerfast" / "data").rglob("*")
            if path.is_file()
        ),
        "steerfast/py.typed",
        "steerfast/cli/__init__.py",
        "steerfast/models/llama.py",
    ]
    assert [name for name in wanted if name not in names] == []
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("gpu", "STEERFAST_BUILD is 'gpu'; known: auto, none, cpu, cuda"), ("cuda", "needs nvcc")],
)
def test_a_build_that_cannot_be_made_is_an_error(wanted, message, tmp_path):
    environment = {
        **os.environ,
        "STEERFAST_BUILD": wanted,
        "PATH": "/usr/bin:/bin",
        "CUDA_HOME": str(tmp_path),
    }
    if wanted == "cuda" and Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is where it is always found")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
