"""Builds the compiled part with ninja and hands it to setuptools. Settings: pyproject.toml.

    STEERFAST_BUILD=auto   CPU kernels; CUDA too if torch has CUDA and nvcc is found (default)
    STEERFAST_BUILD=none   pure Python: the reference backend runs everything
    STEERFAST_BUILD=cpu    CPU kernels only
    STEERFAST_BUILD=cuda   CPU and CUDA kernels; an error without nvcc. torch itself need not have CUDA

    STEERFAST_CUDA_ARCHS=90          what CUDA is compiled for (default: 80,90,100, or what TORCH_CUDA_ARCH_LIST has
                                     of 8.0 and later); fewer build faster

nvcc is called directly: torch's own CUDA build support is switched off under a CPU-only torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "csrc"))
from ninja_file import cuda_archs, find_cxx, find_nvcc, isas, module_name, write_ninja  # noqa: E402


def choose() -> tuple[bool, bool]:
    """(build the CPU part, build the CUDA part), after saying so in one line."""
    wanted = os.environ.get("STEERFAST_BUILD", "auto")
    if wanted not in ("auto", "none", "cpu", "cuda"):
        raise SystemExit(f"STEERFAST_BUILD is {wanted!r}; known: auto, none, cpu, cuda")
    if wanted == "none":
        print("steerfast: building nothing (STEERFAST_BUILD=none)")
        return False, False
    try:
        import torch
    except ImportError:
        if wanted == "auto":
            print("steerfast: building nothing, torch is not here (use --no-build-isolation)")
            return False, False
        raise SystemExit(
            f"STEERFAST_BUILD={wanted} needs torch at build time: install it and use --no-build-isolation"
        ) from None
    if find_cxx() is None:
        if wanted == "auto":
            print("steerfast: building nothing, there is no C++ compiler (c++, or set CXX)")
            return False, False
        raise SystemExit(f"STEERFAST_BUILD={wanted} needs a C++ compiler: install g++ or set CXX")
    nvcc = find_nvcc()
    cuda = wanted == "cuda" or (
        wanted == "auto" and nvcc is not None and torch.version.cuda is not None
    )
    if cuda and nvcc is None:
        raise SystemExit("STEERFAST_BUILD=cuda needs nvcc: put it on PATH or set CUDA_HOME")
    parts = [f"cpu ({', '.join(isas())})"]
    if cuda:
        parts.append(f"cuda (sm_{', sm_'.join(cuda_archs())})")
    absent = "" if module_name() else "; not _C, which needs Python.h (Debian: python3-dev)"
    print(f"steerfast: building {' and '.join(parts)}{absent}")
    return True, cuda


class NinjaBuild(build_ext):
    """Writes build/ninja/build.ninja, runs it, and copies what it made to where setuptools wants it."""

    def run(self) -> None:
        cpu, cuda = choose()
        if not cpu:
            return
        build = ROOT / "build" / "ninja"
        build.mkdir(parents=True, exist_ok=True)
        write_ninja(build / "build.ninja", cuda)
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build)], check=True)
        package = (
            ROOT / "steerfast"
            if self.inplace or self.editable_mode
            else Path(self.build_lib) / "steerfast"
        )
        (package / "lib").mkdir(parents=True, exist_ok=True)
        if module := module_name():
            install(build / module, package / module)
        for name in ["cpu"] + (["cuda"] if cuda else []):
            install(build / f"libsteerfast_{name}.so", package / "lib" / f"libsteerfast_{name}.so")

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "steerfast"
        return [str(path) for path in [*package.glob("_C*.so"), *(package / "lib").glob("*.so")]]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def install(source: Path, target: Path) -> None:
    """By renaming: a running process keeps the library that it has mapped."""
    temporary = target.with_suffix(".tmp")
    shutil.copy2(source, temporary)
    temporary.replace(target)


setup(
    # kernels/ has no __init__.py (see kernels/README.md), so find_packages does not see the link to it.
    packages=[*find_packages(include=["steerfast", "steerfast.*"]), "steerfast.kernels"],
    package_data={
        "steerfast": [
            "py.typed",
            "*.pyi",
            "data/*.json",
            "data/*.txt",
            "data/*.j2",
            "data/questions/*.json",
            "data/presets/*.toml",
        ],
        "steerfast.decoders": ["known.json"],
        "steerfast.kernels": ["tables/*.json"],
    },
    ext_modules=[Extension("steerfast._C", sources=[])],  # NinjaBuild makes it
    cmdclass={"build_ext": NinjaBuild},
)
