"""What a row costs in machine code: the committed table is that of today's kernels, and the goals hold.

Here too, without a compiler: that the way of a row through a loop is found, and its waits counted.
"""

from __future__ import annotations

import re
from pathlib import Path

import emulated
import pytest
import test_cuda_build
import torch

import sass
from gpu import machine_code
from gpu.machine_code import Instruction, Kernel
from gpu.row_paths import Accesses, a_row_of_many, an_only_row, round_trips, waits_in_a_loop

CODE = """
S2R R0, SR_TID.X
LDG.E R1, desc[UR4][R10.64]
LDG.E.NA.128 R4, desc[UR4][R12.64]
top: FADD R2, R4, R5
@P0 BRA @more
PREEXIT
BRA @work
more: LDG.E.NA.128 R4, desc[UR4][R12.64]
work: ISETP.GE.AND P1, PT, R1, RZ, PT
@!P1 BRA @plain
LDG.E.128 R16, desc[UR4][R20.64]
FADD R16, R16, R2
STG.E.128 desc[UR4][R22.64], R16
BRA @sum
plain: STG.E.128 desc[UR4][R22.64], R4
sum: BAR.SYNC.DEFER_BLOCKING 0x0
@P2 CALL.REL.NOINC 0x800
@P0 BRA @top
EXIT
"""


def kernel(code: str) -> Kernel:
    """A kernel from lines of code, ``label: instruction``; ``@label`` is where it is."""
    lines = [
        re.fullmatch(r"(?:(\w+): )?(@!?P\d )?([\w.]+) ?(.*)", line).groups()
        for line in code.split("\n")[1:-1]
    ]
    places = {label: 16 * at for at, (label, *_) in enumerate(lines)}
    made = []
    for at, (_, guard, opcode, operands) in enumerate(lines):
        into = re.sub(r"@(\w+)", lambda m: hex(places[m[1]]), operands)
        made.append(Instruction(16 * at, (guard or "").strip(), opcode, into))
    return Kernel("made", tuple(made), 24, 0)


def test_the_way_of_a_row() -> None:
    found = kernel(CODE.replace("@P2 CALL.REL.NOINC 0x800\n", ""))
    steered = a_row_of_many(found, Accesses(1, 1, 1, 1))
    assert [one.opcode for one in steered if "E" in one.opcode.split(".")] == [
        "LDG.E.NA.128",
        "LDG.E.128",
        "STG.E.128",
    ]
    assert len(steered) == 11
    assert len(a_row_of_many(found, Accesses(1, 0, 1, 1))) == 8
    with pytest.raises(ValueError, match="no loop that does"):
        a_row_of_many(found, Accesses(2, 1, 1, 1))


def test_calls_are_no_way() -> None:
    with pytest.raises(ValueError, match="no loop that does"):
        a_row_of_many(kernel(CODE), Accesses(1, 1, 1, 1))


def test_waits_follow_each_other() -> None:
    """Row and slot together, then the delta; in the loop the next row's elements have come by themselves."""
    found = kernel(CODE.replace("@P2 CALL.REL.NOINC 0x800\n", ""))
    alone = an_only_row(found, Accesses(1, 1, 1, 1))
    assert alone[-1].opcode == "EXIT"
    assert round_trips(alone, until_store=True) == 2
    assert round_trips(an_only_row(found, Accesses(1, 0, 1, 1)), until_store=True) == 1
    assert waits_in_a_loop(a_row_of_many(found, Accesses(1, 1, 1, 1))) == 1


@pytest.mark.parametrize(
    ("registers", "threads", "fit"), [(80, 256, 3), (79, 64, 12), (128, 256, 2), (24, 32, 32)]
)
def test_blocks_of_a_multiprocessor(registers: int, threads: int, fit: int) -> None:
    assert sass.blocks(registers, threads) == fit


@pytest.mark.skipif(bool(emulated.builder.missing()), reason=str(emulated.builder.missing()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_shapes_are_those_of_launches(dtype: torch.dtype) -> None:
    calls = [
        emulated.call(torch.ones(1, width, dtype=dtype), weight=torch.ones(width, dtype=dtype))
        for width in sass.WIDTHS
    ]
    for width, result in zip(sass.WIDTHS, emulated.build().run(calls), strict=True):
        [launch] = result.launches
        shape = sass.Shape(Kernel(launch.kernel, (), 0, 0))
        assert shape.takes(width)
        assert shape.threads(width) == launch.threads


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not test_cuda_build.has_nvcc():
        pytest.skip("nvcc is not on PATH, in CUDA_HOME or /usr/local/cuda")
    if reason := machine_code.missing():
        pytest.skip(reason)
    if f"nvcc {machine_code.release()} " not in sass.REPORT.read_text(encoding="utf-8"):
        pytest.skip(f"the committed table is not of nvcc {machine_code.release()}")
    test_cuda_build.build(tmp_path_factory.mktemp("built"))
    return sass.LIBRARY


def test_the_table_is_of_todays_kernels(built: Path) -> None:
    assert sass.report(built) == sass.REPORT.read_text(encoding="utf-8"), (
        "python benchmarks/sass.py --write"
    )


def test_the_goals() -> None:
    """bfloat16, D = 4096, constant terms: 900 clocks to issue a row. Rows of 8192 with reads: two blocks."""
    rows = [
        dict(
            zip(
                (
                    "kernel",
                    "dtype",
                    "D",
                    "shape",
                    "registers",
                    "blocks",
                    "instructions",
                    "plain",
                    "clocks",
                ),
                cells,
                strict=False,
            )
        )
        for line in sass.REPORT.read_text(encoding="utf-8").splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0]
        in ("additive", "with reads")
    ]
    found = {(row["kernel"], row["dtype"], row["D"]): row for row in rows}
    assert int(found["additive", "bfloat16", "4096"]["clocks"]) <= 900
    assert int(found["with reads", "bfloat16", "8192"]["blocks"]) >= 2
