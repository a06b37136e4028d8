"""Compiles what includes torch against the headers of several torch versions: `make test-headers`.

    python csrc/torch_headers.py [VERSION ...]

VERSION: one that pip knows (2.10.*), `newest`, or `installed`; by default the oldest that pyproject.toml admits, the next, the
installed and the newest one. Wheels are fetched without their dependencies, and only headers are kept, in build/headers.
Kernels include nothing of torch, so that one build of them stands for all.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ninja_file import CSRC, CXX_FLAGS, NVCC_FLAGS, TORCH_TARGET_DEFINE, find_cxx, find_nvcc

CACHE = CSRC.parent / "build/headers"
VERSIONS = ("2.10.*", "2.11.*", "installed", "newest")


def sources() -> list[Path]:
    """Those that include torch, themselves or by a header of ours."""
    every = [*CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu")]
    return sorted(source for source in every if any(_torch_names(source, set())))


def _torch_names(path: Path, seen: set[Path]) -> Iterator[str]:
    """Headers of torch that a file includes."""
    seen.add(path)
    for kind, name in re.findall(r'^#include ([<"])([^>"]+)', path.read_text(), re.MULTILINE):
        ours = [folder / name for folder in (path.parent, CSRC) if (folder / name).exists()]
        if kind == "<" and name.startswith("torch/"):
            yield name
        elif kind == '"' and ours and ours[0] not in seen:
            yield from _torch_names(ours[0], seen)


def fault_of(source: Path, includes: list[Path]) -> str:
    """What the compiler says against a source beside these headers; empty if nothing."""
    ours = [TORCH_TARGET_DEFINE, f"-I{CSRC}"]
    if source.suffix == ".cpp":
        headers = [f"-isystem{path}" for path in includes]
        command = [str(find_cxx()), *CXX_FLAGS, *ours, *headers, "-fsyntax-only", str(source)]
    else:  # nvcc cannot stop at the syntax
        headers = [f"-isystem={path}" for path in includes]
        flags = [flag for flag in NVCC_FLAGS if not flag.startswith("-Xptxas")]
        command = [str(find_nvcc()), *flags, *ours, *headers, "-arch=sm_90", "-c", str(source)]
        command += ["-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def includes_of(version: str) -> tuple[str, list[Path]]:
    """(The version, where its headers are), fetched if they are not here yet."""
    if version == "installed":
        import torch
        from torch.utils.cpp_extension import include_paths

        return torch.__version__, [Path(path) for path in include_paths()]
    asked = "torch" if version == "newest" else f"torch=={version}"
    there = [] if version == "newest" else sorted(CACHE.glob(version))
    folder = there[-1] if there else _fetched(asked)
    headers = folder / "torch/include"
    return folder.name, [headers, headers / "torch/csrc/api/include"]


def _fetched(asked: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        pip += ["--no-deps", "--only-binary=:all:", "-d", scratch, asked]
        subprocess.run(pip, check=True)
        [wheel] = Path(scratch).glob("torch-*.whl")
        folder = CACHE / wheel.name.split("-")[1]
        unpacked = Path(scratch, "headers")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(unpacked, names)
        if not folder.exists():
            unpacked.rename(folder)
    return folder


def main(versions: list[str]) -> int:
    if find_cxx() is None:
        print("there is no C++ compiler (c++, or set CXX)")
        return 1
    compiled = [one for one in sources() if one.suffix == ".cpp" or find_nvcc()]
    left = len(sources()) - len(compiled)
    faults = 0
    for version in versions:
        name, includes = includes_of(version)
        for source in compiled:
            fault = fault_of(source, includes)
            faults += bool(fault)
            print(f"torch {name}: {source.name}: {'does not compile' if fault else 'compiles'}")
            print(fault, end="")
    if left:
        print(f"left out, for want of nvcc: {left} CUDA source(s)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(VERSIONS)))
