"""What is shipped: the wheel's contents, the link, the build switch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ninja_file

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
        "steerfast/models/decoder.py",
        "steerfast/decoders/known.json",
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


@pytest.mark.parametrize(
    ("ours", "torchs", "wanted"),
    [
        (None, None, ["80", "90", "100"]),
        ("90", None, ["90"]),
        ("100, 8.0;sm_90a", "7.0", ["80", "90a", "100"]),
        (" ", "9.0+PTX", ["90"]),
        (None, "7.5 8.6 12.0+PTX", ["86", "120"]),
        (None, "7.0;7.5", ["80", "90", "100"]),
        (None, "Hopper", ["80", "90", "100"]),
    ],
)
def test_cuda_is_compiled_for_what_the_environment_names(
    ours, torchs, wanted, monkeypatch, tmp_path
):
    for name, value in (("STEERFAST_CUDA_ARCHS", ours), ("TORCH_CUDA_ARCH_LIST", torchs)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert ninja_file.cuda_archs() == wanted
    ninja_file.write_ninja(tmp_path / "build.ninja", cuda=True)
    graph = (tmp_path / "build.ninja").read_text()
    code = re.findall(r"-gencode=arch=compute_(\w+),code=sm_\1 ", graph)
    assert list(dict.fromkeys(code)) == wanted
    assert set(re.findall(r"code=compute_(\w+)", graph)) == {wanted[-1]}
    if ninja_file.module_name():
        said = ",".join(f'"{arch}"' for arch in wanted)
        assert f"STEERFAST_BUILT_CUDA_ARCHS={said}'" in graph


@pytest.mark.parametrize(("given", "wrong"), [("hopper", "hopper"), ("90 75", "75"), ("80,9", "9")])
def test_an_architecture_that_is_none_is_an_error(given, wrong, monkeypatch):
    monkeypatch.setenv("STEERFAST_CUDA_ARCHS", given)
    with pytest.raises(SystemExit, match=f"STEERFAST_CUDA_ARCHS names '{wrong}'"):
        ninja_file.cuda_archs()
