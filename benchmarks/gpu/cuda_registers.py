"""Registers and spills of every CUDA kernel, from the compiler's report of the last build: results/cuda_registers.md."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/cuda_registers.md"
REPORT = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'\n.*Function properties.*\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*Used (\d+) registers"
)


def table() -> str:
    """Of the build in build/ninja, and by which compiler; another gives other numbers."""
    logs = sorted((ROOT / "build/ninja").glob("*.cu.o.log"))
    found: dict[str, dict[str, str]] = {}
    for log in logs:
        for kernel, arch, stack, stores, loads, registers in REPORT.findall(log.read_text()):
            spilled = int(stack) + int(stores) + int(loads)
            found.setdefault(kernel, {})[arch] = f"{registers}{', spills' if spilled else ''}"
    names = subprocess.run(
        ["c++filt", *found], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    archs = ("sm_80", "sm_90", "sm_100")
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"By {_compiler()}.",
        "",
        f"| kernel | {' | '.join(archs)} |",
        "|---|---|---|---|",
    ]
    for name, row in sorted(zip(names, found.values(), strict=True), key=lambda pair: pair[0]):
        short = re.sub(r"\(anonymous namespace\)::|steerfast::|\(.*", "", name).removeprefix(
            "void "
        )
        lines.append(f"| `{short}` | {' | '.join(row[arch] for arch in archs)} |")
    return "\n".join([*lines, ""])


def _compiler() -> str:
    """The nvcc that the build's graph names."""
    rule = re.search(
        r"^ *command = (\S*nvcc) ", (ROOT / "build/ninja/build.ninja").read_text(), re.M
    )
    assert rule, "build/ninja is not a build of CUDA"
    said = subprocess.run([rule[1], "--version"], capture_output=True, text=True, check=True).stdout
    return "nvcc " + re.findall(r"V(\d[\d.]*)", said)[-1]


def main() -> None:
    RESULT.write_text(table(), encoding="utf-8")
    print(f"wrote {RESULT.name}")


if __name__ == "__main__":
    main()
