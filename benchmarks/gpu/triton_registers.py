"""Registers and spills of the Triton kernel in every form, from the offline compiler: no GPU is needed.

Writes results/triton_registers.md. ``compiled`` is shared with ``tune_triton`` and tests/ops/test_triton.py.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from steerfast.kernels.launch_table import Config, config_for
from steerfast.kernels.steer_add_rms_norm import (
    UNSPECIALIZED,
    row_alignment,
    steer_add_rms_norm_kernel,
)

REPORT = Path(__file__).parents[1] / "results" / "triton_registers.md"
ARCHS = ("sm_80", "sm_90", "sm_100")
WIDTHS = (576, 2048, 4096, 5120, 8192, 16384)
# Of the stream and of the weight. float16 compiles to what bfloat16 does but for the conversions.
DTYPES = (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32"))
QUICK = ((576, 4096), (("bf16", "bf16"), ("fp32", "fp32")))


@dataclass(frozen=True)
class Form:
    """What a launch leaves out: HAS_X, HAS_NORM, HAS_STEERING, HAS_READS."""

    without: tuple[str, ...] = ()
    fp32_norm: bool = False

    @property
    def with_reads(self) -> bool:
        return "READS" not in self.without


FORMS = {
    "add_rms_norm": Form(("STEERING", "READS")),
    "steer_add_rms_norm, additive": Form(("READS",)),
    "steer_add_rms_norm, with reads": Form(),
    "steer_add_rms_norm, with reads, fp32 norm": Form(fp32_norm=True),
    "steer_rms_norm, with reads": Form(("X",)),
    "steer_add, with reads": Form(("NORM",)),
    "steer, additive": Form(("X", "NORM", "READS")),
    "steer, with reads": Form(("X", "NORM")),
}

# The pointers that a launch passes as None.
_POINTERS = {
    "X": ("x_ptr",),
    "NORM": ("weight_ptr", "normed_ptr"),
    "STEERING": ("row_slot_ptr", "row_gain_ptr", "records_ptr", "bank_ptr"),
    "READS": ("reads_ptr",),
}


@dataclass(frozen=True)
class Usage:
    """Of one thread, but for shared, which is of a program. spills: instructions that touch local memory."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    spills: int

    def programs(self, num_warps: int) -> int:
        """How many fit on a multiprocessor of sm_80, sm_90 or sm_100: 65536 registers, given in eights to
        the threads of a warp, and 64 warps."""
        each = 8 * -(-self.registers // 8)
        return min(65536 // (each * 32 * num_warps), 64 // num_warps, 32)


@dataclass(frozen=True)
class Compiled:
    ttgir: str
    ptx: str
    usage: Usage


@cache
def _signature(
    D: int, BLOCK_D: int, dtype: str, weight: str, form: Form
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    alignment = row_alignment(D, 4 if dtype == "fp32" else 2)
    constants: dict[str, Any] = {"D": D, "BLOCK_D": BLOCK_D, "ALIGNMENT": alignment}
    constants["FP32_NORM"] = form.fp32_norm
    constants |= {f"HAS_{part}": part not in form.without for part in _POINTERS}
    constants |= {name: None for part in form.without for name in _POINTERS[part]}
    pointers = dict.fromkeys(("x_ptr", "residual_ptr", "stream_ptr"), dtype)
    pointers |= {"weight_ptr": weight, "normed_ptr": weight, "bank_ptr": "fp32"}
    pointers |= {"row_slot_ptr": "i32", "row_gain_ptr": "fp32"}
    pointers |= {"records_ptr": "i32", "reads_ptr": "i32"}
    signature, attributes = {}, {}
    for i, name in enumerate(steer_add_rms_norm_kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
        # What a launch finds out by itself: allocations divide by 16.
        if signature[name][0] == "*" and name not in UNSPECIALIZED:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled(
    arch: str,
    D: int,
    dtype: str,
    weight: str,
    form: Form = FORMS["steer_add_rms_norm, with reads"],
    config: Config | None = None,
    **options: Any,
) -> Compiled:
    """The kernel for a GPU that need not be here, with the launch table's config unless one is given."""
    if config is None:
        config = config_for(D, 4 if dtype == "fp32" else 2, form.with_reads, arch)
    signature, constants, attributes = _signature(D, config.BLOCK_D, dtype, weight, form)
    source = ASTSource(steer_add_rms_norm_kernel, signature, constants, attributes)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    kernel = triton.compile(source, target=target, options=config.options | options)
    return Compiled(kernel.asm["ttgir"], kernel.asm["ptx"], _usage(kernel.asm["cubin"]))


def _usage(cubin: bytes) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = _cuobjdump("-res-usage", file.name)
        found = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}
        assert set(found) == {"REG", "STACK", "SHARED", "LOCAL"}, told
        spills = 0
        # ptxas may reserve a stack frame and leave it alone: what counts are the accesses.
        if found["STACK"] or found["LOCAL"]:
            spills = len(re.findall(r"\b(?:STL|LDL)\b", _cuobjdump("-sass", file.name)))
    return Usage(found["REG"], found["STACK"], found["SHARED"], spills)


def _cuobjdump(what: str, path: str) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, what, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


Row = tuple[str, int, str, str]  # form, D, dtype, weight


def rows(
    widths: Sequence[int] = WIDTHS, dtypes: Sequence[tuple[str, str]] = DTYPES
) -> Iterator[Row]:
    """What the report has a line for: the forms of a decoder layer at every size, the others at one."""
    for name in FORMS:
        everywhere = name.startswith("steer_add_rms_norm") and not FORMS[name].fp32_norm
        for D in widths if everywhere else (4096,):
            for dtype, weight in dtypes:
                if dtype == weight or (everywhere and D == 4096):
                    yield name, D, dtype, weight


def line(row: Row) -> str:
    """A row of the report's table; per architecture ``warps: registers, spills``."""
    name, D, dtype, weight = row
    cells = []
    for arch in ARCHS:
        config = config_for(D, 4 if dtype == "fp32" else 2, FORMS[name].with_reads, arch)
        usage = compiled(arch, D, dtype, weight, FORMS[name], config).usage
        programs = usage.programs(config.num_warps)
        cells.append(f"{config.num_warps}: {usage.registers}, {usage.spills}, {programs}")
    kinds = dtype if dtype == weight else f"{dtype}, weight {weight}"
    return f"| {name} | {D} | {kinds} | {' | '.join(cells)} |"


def report() -> str:
    head = (
        f"# Registers of the Triton kernel\n\nFrom ptxas, as Triton {triton.__version__} ships it; nothing here was run or "
        "timed.\nPer architecture: warps of a program: registers of a thread, instructions that spill, programs "
        f"that fit on a\nmultiprocessor. Written by `benchmarks/gpu/triton_registers.py`.\n\n"
        f"| form | D | dtype | {' | '.join(ARCHS)} |\n|{'---|' * (3 + len(ARCHS))}\n"
    )
    return head + "".join(line(row) + "\n" for row in rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, printed and not written")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    arguments = parser.parse_args()
    if arguments.quick:
        lines = [line(row) for row in rows(*QUICK)]
        print("\n".join(lines), file=sys.stderr)
    else:
        text = report()
        REPORT.write_text(text, encoding="utf-8")
        lines = [one for one in text.splitlines() if one.startswith("| steer")]
        print(f"wrote {REPORT.name}", file=sys.stderr)
    if arguments.json:
        found = [cell for one in lines for cell in re.findall(r"\d+: (\d+), (\d+), \d+", one)]
        most = max(int(registers) for registers, _ in found)
        spills = sum(int(spills) for _, spills in found)
        print(json.dumps({"triton": triton.__version__, "most_registers": most, "spills": spills}))


if __name__ == "__main__":
    main()
