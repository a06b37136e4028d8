"""Writes kernels/tables/launch.json: how many warps a row gets, per architecture, element size and D.

--from-compiler   from offline compiler reports, for every architecture, without a GPU
otherwise         by timing on the GPU that is here, whose part of the table alone is replaced

One num_warps serves all forms of a (D, element size): it decides the order of summation, and a row must
not change its bits with the form of its neighbours' steering. maxnreg changes none, so each form has its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import triton

from gpu.triton_registers import ARCHS, FORMS, Usage, compiled
from steerfast.kernels.launch_table import FORMS as TABLE_FORMS
from steerfast.kernels.launch_table import TABLE, Config

WIDTHS = (576, 960, 2048, 3072, 4096, 5120, 8192, 16384)
DTYPES = {16: "bf16", 32: "fp32"}  # by bits of an element
ELEMENTS = (8, 16, 32, 64)  # of a thread
ENOUGH = 2  # programs on a multiprocessor: one computes while the other waits for memory
ROWS = (1, 64, 4096)  # what is timed: decoding, a busy server, a prompt
BY_COMPILER = "compiler reports, not timings"


def candidates(D: int) -> list[int]:
    """Numbers of warps, those with about 16 elements a thread first: two 16-byte accesses of bfloat16,
    enough in flight for one row, few enough registers."""
    block = triton.next_power_of_2(D)
    fitting = [e for e in ELEMENTS if 32 * e <= block <= 32 * 32 * e]
    return [block // (32 * e) for e in sorted(fitting, key=lambda e: abs(math.log2(e / 16)))]


def capped(num_warps: int) -> int:
    """The registers that leave room for ENOUGH programs; at most what a thread may have."""
    return min(65536 // (ENOUGH * 32 * num_warps) // 8 * 8, 255)


def usage_of(arch: str, D: int, bits: int, with_reads: bool, config: Config) -> Usage:
    """The most that any of these forms takes, with a weight of either dtype."""
    dtype = DTYPES[bits]
    found = [
        compiled(arch, D, dtype, weight, form, config).usage
        for form in FORMS.values()
        if form.with_reads == with_reads
        for weight in ({dtype} if "NORM" in form.without else {dtype, "fp32"})
    ]
    return max(found, key=lambda usage: (usage.spills, usage.registers))


def without_spills(
    arch: str, D: int, bits: int, with_reads: bool, num_warps: int
) -> dict[str, Any] | None:
    """The register limit (None: left to ptxas, which in rare cases spills for a third program) that lets
    most programs fit, and what it comes to; None where the kernel spills under both."""
    best: dict[str, Any] | None = None
    for maxnreg in (None, capped(num_warps)):
        config = Config(triton.next_power_of_2(D), num_warps, maxnreg)
        usage = usage_of(arch, D, bits, with_reads, config)
        programs = usage.programs(num_warps)
        if not usage.spills and (best is None or programs > best["programs"]):
            best = {"maxnreg": maxnreg, "registers": usage.registers, "programs": programs}
        if best is not None and best["programs"] >= ENOUGH:
            break
    return best


def entry_of(num_warps: int, forms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "num_warps": num_warps,
        "maxnreg": {form: found["maxnreg"] for form, found in forms.items()},
        "registers": {form: found["registers"] for form, found in forms.items()},
    }


def by_compiler(arch: str, D: int, bits: int) -> dict[str, Any]:
    """The first candidate without spills of which ENOUGH programs fit in both forms, else the one of
    which most do."""
    best: tuple[int, dict[str, Any]] | None = None
    for num_warps in candidates(D):
        forms = {}
        for form in TABLE_FORMS:
            found = without_spills(arch, D, bits, form == "with_reads", num_warps)
            if found is None:
                break
            forms[form] = found
        if len(forms) < len(TABLE_FORMS):
            continue
        fit = min(ENOUGH, *(found["programs"] for found in forms.values()))
        if best is None or fit > best[0]:
            best = fit, entry_of(num_warps, forms)
        if fit == ENOUGH:
            break
    assert best is not None, f"{arch} D={D}, {bits} bits: every candidate spills"
    return best[1]


def by_timing(D: int, bits: int, rounds: int) -> dict[str, Any]:
    """The candidate with the least time, each form's and each number of rows' relative to the best there:
    a geometric mean, so that no size counts more for taking longer."""
    import torch

    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for num_warps in candidates(D):
        forms = {
            form: without_spills(arch, D, bits, form == "with_reads", num_warps)
            for form in TABLE_FORMS
        }
        if all(forms.values()):
            found[num_warps] = {form: kept for form, kept in forms.items() if kept is not None}
    times: dict[int, list[float]] = {num_warps: [] for num_warps in found}
    for form in TABLE_FORMS:
        for rows in ROWS:
            configs = {
                w: Config(triton.next_power_of_2(D), w, forms[form]["maxnreg"])
                for w, forms in found.items()
            }
            of = timed(configs, D, bits, form == "with_reads", rows, rounds)
            fastest = min(of.values())
            shown = "  ".join(f"{w} warps {time:.2f}" for w, time in of.items())
            print(f"{arch} D={D} {bits} bits {form} N={rows} us: {shown}", file=sys.stderr)
            for num_warps, time in of.items():
                times[num_warps].append(time / fastest)
    assert times, f"{arch} D={D}, {bits} bits: every candidate spills"
    best = min(times, key=lambda w: sum(map(math.log, times[w])))
    return entry_of(best, found[best])


def timed(
    configs: dict[int, Config], D: int, bits: int, with_reads: bool, rows: int, rounds: int
) -> dict[int, float]:
    """{num_warps: median microseconds of a launch}, the candidates in turn within each round, inputs cold.

    Half of the rows are in a slot: with reads, four affine ones, whose bank rows all slots share.
    """
    import torch

    from gpu import timing
    from steerfast.kernels.steer_add_rms_norm import launch
    from steerfast.ops.reference import Steering

    dtype = {16: torch.bfloat16, 32: torch.float32}[bits]
    sets = timing.sets_needed(4 * rows * D * bits // 8)
    inputs = [
        [torch.randn(rows, D, device="cuda").to(dtype) for _ in range(2)]
        + [torch.empty(rows, D, device="cuda", dtype=dtype) for _ in range(2)]
        for _ in range(sets)
    ]
    weight = torch.ones(D, device="cuda", dtype=dtype)
    slot = torch.arange(rows, device="cuda", dtype=torch.int32) % 2 - (rows > 1)
    steering = Steering(
        slot,
        torch.ones(rows, device="cuda"),
        torch.tensor([[0, 0, 0, 4 * with_reads]], device="cuda", dtype=torch.int32),
        _reads(with_reads).cuda(),
        torch.nn.functional.normalize(torch.randn(5, D, device="cuda")),
    )

    def calls(config: Config) -> list[Callable[[], object]]:
        return [
            lambda x=x, r=r, s=s, n=n: launch(x, r, s, weight, n, 1e-5, False, steering, config)
            for x, r, s, n in inputs
        ]

    versions = {str(num_warps): calls(config) for num_warps, config in configs.items()}
    times = timing.interleave(versions, rounds=rounds)
    return {num_warps: times[str(num_warps)]["median"] for num_warps in configs}


def _reads(with_reads: bool) -> Any:
    import torch

    from steerfast.ops.records import MAX_READS, READ_WIDTH, Op, Read

    reads = torch.zeros(int(with_reads), MAX_READS, READ_WIDTH, dtype=torch.int32)
    for i in range(4 * with_reads):
        read = Read(Op.AFFINE, 1 + i, 1 + i, slope=-1.0, offset=1.0)
        reads[0, i] = torch.tensor(read.words(), dtype=torch.int32)
    return reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from-compiler", action="store_true", help="no timing, no GPU")
    parser.add_argument("--quick", action="store_true", help="D = 576 and 4096; nothing is written")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    arguments = parser.parse_args()
    widths = (576, 4096) if arguments.quick else WIDTHS
    table = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]
    if arguments.from_compiler:
        for arch in ARCHS[1:2] if arguments.quick else ARCHS:
            entries = {str(b): {str(D): by_compiler(arch, D, b) for D in widths} for b in DTYPES}
            table[arch] = {"chosen_from": BY_COMPILER, **entries}
    else:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                "gpu.tune_triton times on a GPU, and torch sees none; --from-compiler needs none"
            )
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        rounds = 5 if arguments.quick else 15
        entries = {str(b): {str(D): by_timing(D, b, rounds) for D in widths} for b in DTYPES}
        table[arch] = {"chosen_from": f"timings on {torch.cuda.get_device_name()}", **entries}
    whole = {"written_by": "benchmarks/gpu/tune_triton.py", "triton": triton.__version__}
    whole["architectures"] = table
    if not arguments.quick:
        TABLE.write_text(_pretty(whole), encoding="utf-8")
        print(f"wrote {TABLE.name}; now run python -m gpu.triton_registers", file=sys.stderr)
    if arguments.json:
        print(json.dumps(whole))


def _pretty(table: dict[str, Any]) -> str:
    """JSON with one line an entry."""
    text = json.dumps(table, indent=1)
    inner = text.split("\n")
    lines: list[str] = []
    for one in inner:
        depth = len(one) - len(one.lstrip())
        if depth > 4:
            lines[-1] += one.strip() + (" " if one.rstrip().endswith(",") else "")
        elif depth == 4 and one.strip().startswith("}"):
            lines[-1] += one.strip()
        else:
            lines.append(one)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
