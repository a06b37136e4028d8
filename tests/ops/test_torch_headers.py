"""The sources against the headers of torch versions other than the installed one: `make test-headers`, as far as it needs no network."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import torch_headers

# Macros of torch that its headers have had since 2.10, which pyproject.toml admits. A macro that is new here: run
# `make test-headers` before it is added.
MACROS = {
    "STABLE_TORCH_LIBRARY_FRAGMENT",
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_TORCH_CHECK",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
}
LATER = "STABLE_TORCH_ERROR_CODE_CHECK"  # of 2.13: the stable headers themselves use it there

needs_compiler = pytest.mark.skipif(
    torch_headers.find_cxx() is None, reason="there is no C++ compiler (c++, or what CXX names)"
)


def test_what_includes_torch_is_found() -> None:
    assert [source.name for source in torch_headers.sources()] == ["ops.cpp", "ops_cuda.cu"]


def test_the_sources_use_no_macro_that_came_later() -> None:
    files = [path for path in torch_headers.CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    used = re.findall(
        r"\b(?:STD|STABLE|TORCH)_[A-Z_]+\b", "".join(path.read_text() for path in files)
    )
    assert set(used) == MACROS


@pytest.fixture
def older(tmp_path: Path) -> list[Path]:
    """The installed headers, without the name that came in 2.13."""
    name, includes = torch_headers.includes_of("installed")
    assert name == torch.__version__
    stable = tmp_path / "older/torch/csrc/stable"
    shutil.copytree(includes[0] / "torch/csrc/stable", stable)
    for header in stable.rglob("*.h"):
        header.write_text(header.read_text().replace(LATER, "ANOTHER_NAME"))
    return [tmp_path / "older", *includes]


@needs_compiler
def test_a_name_that_older_headers_lack_is_reported(older: list[Path], tmp_path: Path) -> None:
    ops = torch_headers.CSRC / "ops.cpp"
    assert torch_headers.fault_of(ops, older) == ""
    planted = tmp_path / "planted.cpp"
    planted.write_text(f'#include "ops.cpp"\nvoid f(int error) {{ {LATER}(error); }}\n')
    assert LATER in torch_headers.fault_of(planted, older)


def test_headers_are_taken_from_a_wheel_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, cache = tmp_path / "wheels", tmp_path / "headers"
    wheels.mkdir()
    about = "torch-2.99.1.dist-info"
    with zipfile.ZipFile(wheels / "torch-2.99.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/include/torch/csrc/stable/tensor.h", "// of 2.99\n")
        wheel.writestr("torch/lib/libtorch.so", "much")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.99.1\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(torch_headers, "CACHE", cache)
    name, includes = torch_headers.includes_of("2.99.*")
    assert name == "2.99.1"
    assert (includes[0] / "torch/csrc/stable/tensor.h").read_text() == "// of 2.99\n"
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["tensor.h"]
    shutil.rmtree(wheels)  # the second time it needs none
    assert torch_headers.includes_of("2.99.*") == (name, includes)


@needs_compiler
def test_a_fault_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_headers, "find_nvcc", lambda: None)
    assert torch_headers.main(["installed"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}: ops.cpp: compiles" in said
    assert "left out, for want of nvcc: 1 CUDA source(s)" in said
    monkeypatch.setattr(
        torch_headers, "includes_of", lambda version: (version, [])
    )  # no headers at all
    assert torch_headers.main(["2.9"]) == 1
    assert "torch 2.9: ops.cpp: does not compile" in capsys.readouterr().out
