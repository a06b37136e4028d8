"""Builds the compiled part with ninja and hands it to setuptools. Settings: pyproject.toml.

    STEERFAST_BUILD=auto   CPU kernels; CUDA too if torch has CUDA and nvcc is found (default)
    STEERFAST_BUILD=none   pure Python: the reference backend runs everything
    STEERFAST_BUILD=cpu    CPU kernels only
    STEERFAST_BUILD=cuda   CPU and CUDA kernels; an error without nvcc. torch itself need not have CUDA

nvcc is called directly: torch's own CUDA build support is switched off under a CPU-only torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "2.10"
TORCH_TARGET_DEFINE = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"
# -ffp-contract=off: a fused multiply-add would round differently from one instruction set to the next.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
X86_ISAS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
CUDA_ARCHS = ["80", "90", "100"]


def isas() -> dict[str, list[str]]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    return {**(X86_ISAS if x86 else {}), "baseline": []}


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((str(path) for path in candidates if path.exists()), None)


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
    nvcc, sources = find_nvcc(), sorted((ROOT / "csrc").glob("*.cu"))
    cuda = wanted == "cuda" or (
        wanted == "auto" and nvcc is not None and torch.version.cuda is not None
    )
    if cuda and nvcc is None:
        raise SystemExit("STEERFAST_BUILD=cuda needs nvcc: put it on PATH or set CUDA_HOME")
    cuda = cuda and bool(sources)
    print(
        f"steerfast: building cpu ({', '.join(isas())})"
        + (f" and cuda (sm_{', sm_'.join(CUDA_ARCHS)})" if cuda else "")
    )
    return True, cuda


class NinjaBuild(build_ext):
    """Writes build/ninja/build.ninja, runs it, and copies what it made to where setuptools wants it."""

    def run(self) -> None:
        cpu, cuda = choose()
        if not cpu:
            return
        build = ROOT / "build" / "ninja"
        build.mkdir(parents=True, exist_ok=True)
        with open(build / "build.ninja", "w") as out:
            write_ninja(out, build, cuda)
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build)], check=True)
        package = (
            ROOT / "steerfast"
            if self.inplace or self.editable_mode
            else Path(self.build_lib) / "steerfast"
        )
        (package / "lib").mkdir(parents=True, exist_ok=True)
        module = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
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


def write_ninja(out, build: Path, cuda: bool) -> None:  # type: ignore[no-untyped-def]
    import pybind11
    from ninja import ninja_syntax
    from torch.utils.cpp_extension import include_paths, library_paths

    n = ninja_syntax.Writer(out, width=200)
    n.variable("cxx", os.environ.get("CXX", "c++"))
    torch_includes = [f"-isystem{path}" for path in include_paths()]
    python_includes = [
        f"-isystem{sysconfig.get_path('include')}",
        f"-isystem{pybind11.get_include()}",
    ]
    torch_libs = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    torch_libs += ["-ltorch_cpu", "-lc10"]
    n.rule("cxx", "$cxx -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
    n.rule("link", "$cxx -shared $in -o $out $libs")
    flags = [*CXX_FLAGS, TORCH_TARGET_DEFINE]

    objects = []
    for isa, isa_flags in isas().items():
        target = f"steer_rows_{isa}.o"
        one = [*CXX_FLAGS, f"-DSTEERFAST_ISA={isa}", *isa_flags]
        n.build(target, "cxx", str(ROOT / "csrc/cpu/steer_rows.cpp"), variables={"flags": one})
        objects.append(target)
    n.build("isa.o", "cxx", str(ROOT / "csrc/cpu/isa.cpp"), variables={"flags": flags})
    n.build(
        "ops.o", "cxx", str(ROOT / "csrc/ops.cpp"), variables={"flags": [*flags, *torch_includes]}
    )
    n.build(
        "libsteerfast_cpu.so", "link", [*objects, "isa.o", "ops.o"], variables={"libs": torch_libs}
    )

    def strings(names: list[str]) -> str:
        return ",".join(f'\\"{name}\\"' for name in names)

    built = [
        f"'-DSTEERFAST_BUILT_ISAS={strings(list(isas()))}'".replace("\\", ""),
        f"'-DSTEERFAST_BUILT_CUDA_ARCHS={strings(CUDA_ARCHS if cuda else [])}'".replace("\\", ""),
        f"'-DSTEERFAST_TORCH_TARGET=\"{TORCH_TARGET}\"'",
    ]
    n.build(
        "module.o",
        "cxx",
        str(ROOT / "csrc/module.cpp"),
        variables={"flags": [*CXX_FLAGS, *python_includes, *built]},
    )
    n.build(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "link", "module.o")

    if cuda:
        archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS]
        archs.append(f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}")
        nvcc = find_nvcc()
        # What ptxas reports of each kernel (registers, spills) is kept beside the object: a test reads it.
        compile_one = f"{nvcc} -MMD -MF $out.d $flags -c $in -o $out > $out.log 2>&1"
        n.rule(
            "nvcc",
            f"{compile_one} || (cat $out.log; exit 1) && (grep -i warning $out.log || true)",
            depfile="$out.d",
            deps="gcc",
        )
        n.rule("nvlink", f"{nvcc} -shared -nodlink -cudart static $in -o $out $libs")
        nvcc_flags = [
            "-O3",
            "-std=c++17",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            "--threads=2",
            "-fmad=false",
            "-lineinfo",
        ]
        nvcc_flags += [
            "-Xptxas=-v",
            TORCH_TARGET_DEFINE,
            *archs,
            *(f"-isystem={path}" for path in include_paths()),
        ]
        cuda_objects = []
        for source in sorted((ROOT / "csrc").glob("*.cu")):
            target = f"{source.stem}.cu.o"
            n.build(
                target,
                "nvcc",
                str(source),
                implicit_outputs=[f"{target}.log"],
                variables={"flags": nvcc_flags},
            )
            cuda_objects.append(target)
        # libtorch, though nothing of it is used here, brings libtorch_cuda where torch has it (see
        # ops_cuda.cu). The static runtime stays this library's own: load_library makes symbols global.
        torch_cuda_libs = ["-Wl,--no-as-needed", "-ltorch", *torch_libs, "-Wl,--exclude-libs,ALL"]
        libs = [flag.replace("-Wl,", "-Xlinker=") for flag in torch_cuda_libs]
        n.build("libsteerfast_cuda.so", "nvlink", cuda_objects, variables={"libs": libs})


setup(
    # kernels/ has no __init__.py (see kernels/README.md), so find_packages does not see the link to it.
    packages=[*find_packages(include=["steerfast", "steerfast.*"]), "steerfast.kernels"],
    package_data={
        "steerfast": ["py.typed", "*.pyi", "data/*.json"],
        "steerfast.kernels": ["tables/*.json"],
    },
    ext_modules=[Extension("steerfast._C", sources=[])],  # NinjaBuild makes it
    cmdclass={"build_ext": NinjaBuild},
)
