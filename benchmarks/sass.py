"""What a row costs by the machine code, without a GPU and without a clock: ``python benchmarks/sass.py --write``.

Disassembles the CUDA library of the last build (``STEERFAST_BUILD=cuda``) for sm_90 and counts, for every kernel that
keeps rows in registers: warp instructions of a row, steered by a constant and not steered; the clocks in which four
schedulers issue them, beside those in which memory moves the row's bytes; registers and blocks of a multiprocessor; and
how often a warp waits for memory, one wait after the other. A prediction, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gpu import machine_code
from gpu.row_paths import Accesses, a_row_of_many, an_only_row, round_trips, waits_in_a_loop

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "build/ninja/libsteerfast_cuda.so"
REPORT = Path(__file__).parent / "results/sass.md"
ARCH = "sm_90"
WIDTHS = (576, 2048, 4096, 8192)
# An H200: what a copy reaches, its multiprocessors and their clock.
BYTES_PER_SECOND, MULTIPROCESSORS, HERTZ = 4.3e12, 132, 1.98e9
SCHEDULERS = 4
SIZES = {"__nv_bfloat16": 2, "__half": 2, "float": 4}
NAMES = {"__nv_bfloat16": "bfloat16", "__half": "float16", "float": "float32"}
KERNEL = re.compile(r"rows_in_registers<(\w+), (\w+), (\d+), (\d+), (\w+)>")
HEAD = (
    "kernel", "dtype", "D", "threads x vectors", "registers", "blocks",
    "instructions, steered", "not steered", "clocks to issue, steered", "not steered", "clocks of its bytes",
    "waits a row", "waits of an only row, steered", "not steered",
)  # fmt: skip


class Shape:
    """How a kernel lays a row of D elements out (csrc/row.cuh)."""

    def __init__(self, kernel: machine_code.Kernel) -> None:
        stream, weight, vectors, threads, reads = KERNEL.fullmatch(kernel.name).groups()
        self.stream, self.weight, self.reads = stream, weight, reads == "true"
        self.vectors, self.most_threads = int(vectors), int(threads)
        self.lanes = 16 // SIZES[stream]

    def threads(self, width: int) -> int:
        of_warp = self.vectors * self.lanes * 32
        return 32 * -(-width // of_warp)

    def takes(self, width: int) -> bool:
        """Two vectors a thread up to 256 threads, then four."""
        all_vectors = -(-width // self.lanes)
        if (2 if all_vectors <= 512 else 4) != self.vectors or self.threads(width) > 512:
            return False
        return (self.threads(width) > 256) == (self.most_threads > 256)

    def row_bytes(self, width: int) -> int:
        """Read x and residual, write the stream and its norm."""
        return width * (3 * SIZES[self.stream] + SIZES[self.weight])

    def accesses(self, steered: bool, only: bool) -> Accesses:
        """only: the block has one row, so the weight is read too, and the row's record."""
        of_weight = self.vectors * self.lanes * SIZES[self.weight] // 16
        tables = self.vectors * self.lanes * 4 // 16 if steered else 0
        kept = SIZES[self.weight] == SIZES[self.stream] and not self.reads
        if only or not kept:
            tables += of_weight
        return Accesses(2 * self.vectors, tables, self.vectors + of_weight, 1)


def blocks(registers: int, threads: int) -> int:
    """That fit on a multiprocessor: registers are given to a warp in units of 256, to a quarter of them at a time."""
    warps = min(64, 4 * (16384 // (-(-registers // 8) * 8 * 32)))
    return min(warps // (threads // 32), 32)


def clocks_to_issue(instructions: int, threads: int) -> float:
    return instructions * (threads / 32) / SCHEDULERS


def clocks_of_bytes(count: int) -> float:
    return count / (BYTES_PER_SECOND / MULTIPROCESSORS / HERTZ)


def rows(library: Path) -> list[dict[str, object]]:
    found = []
    for kernel in machine_code.kernels_of(library, ARCH, "rows_in_registers"):
        shape = Shape(kernel)
        if shape.stream != shape.weight:
            continue
        steered, plain = (
            a_row_of_many(kernel, shape.accesses(how, False)) for how in (True, False)
        )
        alone = [_waits_alone(kernel, shape, how) for how in (True, False)]
        for width in filter(shape.takes, WIDTHS):
            threads = shape.threads(width)
            found.append({
                "kernel": "with reads" if shape.reads else "additive", "dtype": NAMES[shape.stream], "D": width,
                "threads x vectors": f"{threads} x {shape.vectors}", "registers": kernel.registers,
                "blocks": blocks(kernel.registers, threads),
                "instructions": [len(steered), len(plain)],
                "clocks to issue": [round(clocks_to_issue(len(path), threads)) for path in (steered, plain)],
                "clocks of its bytes": round(clocks_of_bytes(shape.row_bytes(width))),
                "waits a row": waits_in_a_loop(steered), "waits of an only row": alone,
            })  # fmt: skip
    order = list(NAMES.values())
    return sorted(found, key=lambda row: (row["kernel"], order.index(row["dtype"]), row["D"]))


def _waits_alone(kernel: machine_code.Kernel, shape: Shape, steered: bool) -> int:
    """Until the stream is stored. A whole record, as rows with reads take it, is a vector of the tables more."""
    wanted = shape.accesses(steered, True)
    if shape.reads:
        wanted = wanted._replace(tables=wanted.tables + 1)
    return round_trips(an_only_row(kernel, wanted), until_store=True)


def table(found: Sequence[dict[str, object]]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for row in found:
        cells = [
            cell
            for value in row.values()
            for cell in (value if isinstance(value, list) else [value])
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def report(library: Path) -> str:
    return (
        f"# What a row costs by the machine code\n\nFrom the disassembly for {ARCH} of what nvcc {machine_code.release()} "
        "makes; nothing here was run or timed.\nWritten by `benchmarks/sass.py`, which says how it counts.\n\n"
        f"{table(rows(library))}\n"
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write results/{REPORT.name}")
    parser.add_argument("--library", type=Path, default=LIBRARY, help="or a cubin of sm_90")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    arguments = parser.parse_args(given)
    if reason := machine_code.missing():
        raise SystemExit(f"sass.py: {reason}")
    if not arguments.library.exists():
        raise SystemExit(f"sass.py: no {arguments.library}; build it with STEERFAST_BUILD=cuda")
    found = rows(arguments.library)
    print(table(found))
    if arguments.write:
        REPORT.write_text(report(arguments.library), encoding="utf-8")
    if arguments.json:
        issued = {
            f"{row['kernel']}, {row['dtype']}, {row['D']}": row["clocks to issue"] for row in found
        }
        print(json.dumps({"arch": ARCH, "clocks_to_issue": issued}))


if __name__ == "__main__":
    main()
