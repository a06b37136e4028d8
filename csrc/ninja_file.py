"""The build graph of the compiled part: writes build.ninja. Called by setup.py.

One C++ source per CPU instruction set (no -march=native: the kernel chooses at run time), one library
for the CPU operators, one for CUDA, and the small _C module, which alone needs Python's headers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

CSRC = Path(__file__).parent.resolve()
TORCH_TARGET = "2.10"
TORCH_TARGET_DEFINE = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"
# -ffp-contract=off: a fused multiply-add would round differently from one instruction set to the next.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
X86_ISAS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
CUDA_ARCHS = ["80", "90", "100"]  # unless the environment names others: cuda_archs()
OLDEST_CUDA_ARCH = 80  # the kernels need bfloat16
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "--threads=2",
    "-fmad=false",
    "-lineinfo",
    "-Xptxas=-v",
]


def isas() -> dict[str, list[str]]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    return {**(X86_ISAS if x86 else {}), "baseline": []}


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((str(path) for path in candidates if path.exists()), None)


def cuda_archs() -> list[str]:
    """What to compile CUDA for, ascending; the last also as PTX, for whatever comes after it.

    STEERFAST_CUDA_ARCHS, as 90 or 80,90,100: SystemExit for what is none, or too old. Else what TORCH_CUDA_ARCH_LIST has that
    is new enough: it speaks to every extension. Else CUDA_ARCHS.
    """
    ours = _archs_in("STEERFAST_CUDA_ARCHS")
    wrong = [name for name, number in ours.items() if number < OLDEST_CUDA_ARCH]
    if wrong:
        raise SystemExit(
            f"STEERFAST_CUDA_ARCHS names {wrong[0]!r}; give architectures from {OLDEST_CUDA_ARCH} on, as 90 or 80,90,100"
        )
    torchs = _archs_in("TORCH_CUDA_ARCH_LIST")
    torchs = {name: number for name, number in torchs.items() if number >= OLDEST_CUDA_ARCH}
    chosen = ours or torchs
    return sorted(chosen, key=lambda name: (chosen[name], name)) or CUDA_ARCHS


def _archs_in(variable: str) -> dict[str, int]:
    """{"90a": 90} of 90a, 9.0a, sm_90a or 9.0a+PTX; a word that is no architecture is -1."""
    found = {}
    for word in re.findall(r"[^\s,;]+", os.environ.get(variable, "")):
        known = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)(?:\+PTX)?", word)
        digits = known[1] + known[2] if known else "-1"
        found[digits + known[3] if known else word] = int(digits)
    return found


def find_cxx() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def module_name() -> str | None:
    """The file name of _C, or None where Python's headers are not installed (Debian: python3-dev)."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return None
    return f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def write_ninja(path: Path, cuda: bool) -> None:
    """Write the graph; its targets are libsteerfast_cpu.so, libsteerfast_cuda.so and _C."""
    from ninja import ninja_syntax

    with open(path, "w") as out:
        n = ninja_syntax.Writer(out, width=200)
        torch_libs = _cpu_rules(n)
        if module_name() is not None:
            _module_rules(n, cuda)
        if cuda:
            _cuda_rules(n, torch_libs)


def _cpu_rules(n: Any) -> list[str]:
    """The CPU library; returns the flags that link torch."""
    from torch.utils.cpp_extension import include_paths, library_paths

    n.variable("cxx", find_cxx())
    torch_includes = [f"-isystem{path}" for path in include_paths()]
    torch_libs = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    torch_libs += ["-ltorch_cpu", "-lc10"]
    n.rule("cxx", "$cxx -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
    n.rule("link", "$cxx -shared $in -o $out $libs")
    flags = [*CXX_FLAGS, TORCH_TARGET_DEFINE]

    objects = []
    for isa, isa_flags in isas().items():
        target = f"steer_rows_{isa}.o"
        # GCC 12 warns of its own intrinsics headers.
        one = [*CXX_FLAGS, "-Wno-uninitialized", f"-DSTEERFAST_ISA={isa}", *isa_flags]
        n.build(target, "cxx", str(CSRC / "cpu/steer_rows.cpp"), variables={"flags": one})
        objects.append(target)
    for name in ("isa", "check", "coefficients"):
        n.build(f"{name}.o", "cxx", str(CSRC / f"cpu/{name}.cpp"), variables={"flags": flags})
        objects.append(f"{name}.o")
    n.build("ops.o", "cxx", str(CSRC / "ops.cpp"), variables={"flags": [*flags, *torch_includes]})
    n.build("libsteerfast_cpu.so", "link", [*objects, "ops.o"], variables={"libs": torch_libs})

    return torch_libs


def _module_rules(n: Any, cuda: bool) -> None:
    import pybind11

    includes = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]

    def strings(names: list[str]) -> str:
        return ",".join(f'"{name}"' for name in names)

    built = [
        f"'-DSTEERFAST_BUILT_ISAS={strings(list(isas()))}'",
        f"'-DSTEERFAST_BUILT_CUDA_ARCHS={strings(cuda_archs() if cuda else [])}'",
        f"'-DSTEERFAST_TORCH_TARGET=\"{TORCH_TARGET}\"'",
    ]
    flags = [*CXX_FLAGS, *includes, *built]
    n.build("module.o", "cxx", str(CSRC / "module.cpp"), variables={"flags": flags})
    n.build(module_name(), "link", "module.o")


def _cuda_rules(n: Any, torch_libs: list[str]) -> None:
    from torch.utils.cpp_extension import include_paths

    last = cuda_archs()[-1]
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in cuda_archs()]
    archs.append(f"-gencode=arch=compute_{last},code=compute_{last}")
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
    includes = [f"-isystem={path}" for path in include_paths()]
    nvcc_flags = [*NVCC_FLAGS, TORCH_TARGET_DEFINE, *archs, *includes]
    cuda_objects = []
    for source in sorted(CSRC.glob("*.cu")):
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
