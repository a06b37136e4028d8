"""The fused ops against what eager Llama with steering hooks does, allocation included.

eager       residual + x, the steering term by term in a forward hook, LlamaRMSNorm
batched     the same with the terms as two matrix products, where there are several
compiled    torch.compile of the reference
unsteered   steer_add_rms_norm, every row in slot -1 of the same table
steered     steer_add_rms_norm, every row in slot 0
steered A/A the same again
distinct    steer_add_rms_norm, rows in runs of 64 (N > 256) or one by one over up to 256 slots
plain       add_rms_norm, which takes no steering arguments

On a GPU: device time by graph replay over rotating inputs, per backend, with the bytes that the op must
move as a share of a copy's bandwidth, and where the operands lie (``operands``: in cache or in memory). On a CPU: wall time.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import gpu.timing
from harness import script
from harness.op_runners import compiled, versions
from harness.shapes import DTYPES
from harness.spreads import ratio_of, summary
from harness.timing import Series, in_turn

SEED = 0
ROWS = (1, 16, 64, 512, 4096)
GPU_ROWS = (1, 16, 64, 256, 1024, 4096, 16384)
WIDE = 4096  # of Llama-2-7B; what the bars are set on
WIDTHS = (576, WIDE)
FEWER_ROWS = {576: (1, 64), WIDE: (1, 64, 4096)}
KINDS = ("bfloat16", "float32")
Case = tuple[str, str, int, int]  # form, dtype, D, N


def measure(cases: list[Case], rounds: int, also_compiled: list[Case]) -> Iterator[dict[str, Any]]:
    """One result line per case, as it is measured: microseconds, and the ratios that bars are set on."""
    on_gpu = torch.cuda.is_available()
    bandwidth = gpu.timing.copy_bandwidth() if on_gpu else None
    floor = gpu.timing.launch_floor() if on_gpu else None
    for case in cases:
        form, dtype, width, rows = case
        with torch.inference_mode():
            if on_gpu:
                times = _on_gpu(form, DTYPES[dtype], width, rows, rounds)
            else:
                found = versions(form, DTYPES[dtype], width, rows)
                if case in also_compiled:
                    found["compiled"] = compiled(form, DTYPES[dtype], width, rows)
                times = in_turn(found, rounds=rounds)
        us = {name: summary(series) for name, series in times.items()}
        line = {"bench": "ops", "form": form, "dtype": dtype, "D": width, "N": rows, "us": us}
        line |= {"rounds": rounds, "ratios": ratios(times)}
        line |= {name: ratio["ratio"] for name, ratio in line["ratios"].items()}
        if on_gpu:
            moved = 4 * rows * width * DTYPES[dtype].itemsize
            share = moved / (us["steered"]["median"] * 1e-6) / bandwidth
            line |= {"bytes": moved, "of_copy": share, "copy": bandwidth, "launch_us": floor}
            line["operands"] = gpu.timing.where(_sets(width, rows, DTYPES[dtype]) * moved)
        shown = "  ".join(f"{name} {time['median']:.1f}" for name, time in us.items())
        print(f"{form:>9} {dtype} D={width} N={rows:<5} us: {shown}", file=sys.stderr)
        yield line


def _on_gpu(form: str, dtype: torch.dtype, width: int, rows: int, rounds: int) -> Series:
    seeds = range(_sets(width, rows, dtype))
    found = [versions(form, dtype, width, rows, "cuda", seed) for seed in seeds]
    return gpu.timing.in_turn(
        {name: [one[name] for one in found] for name in found[0]}, rounds=rounds
    )


def _sets(width: int, rows: int, dtype: torch.dtype) -> int:
    """How many operands rotate. Those of few rows all lie in the cache, as a layer's do in a model: the line says so."""
    return min(8, gpu.timing.sets_needed(2 * rows * width * dtype.itemsize))


def ratios(times: Series) -> dict[str, dict[str, float]]:
    """{name: ratio, p20, p80}, round by round."""
    pairs = {
        "speedup_vs_eager": ("eager", "steered"),
        "speedup_vs_batched": ("batched", "steered"),
        "speedup_vs_compiled": ("compiled", "steered"),
        "steered_over_unsteered": ("steered", "unsteered"),
        "distinct_over_unsteered": ("distinct", "unsteered"),
        "steered_over_plain": ("steered", "plain"),
        "a_over_a": ("steered A/A", "steered"),
    }
    return {
        name: ratio_of(times[above], times[below])
        for name, (above, below) in pairs.items()
        if above in times
    }


def collapsed(rows: int, rounds: int) -> dict[str, Any]:
    """Sixteen constant vectors against one, in one run: k16_over_k1."""
    with torch.inference_mode():
        one = versions("additive", torch.bfloat16, WIDE, rows)["steered"]
        sixteen = versions("additive16", torch.bfloat16, WIDE, rows)["steered"]
        times = in_turn({"k1": one, "k16": sixteen, "k1 A/A": one}, rounds=rounds)
    us = {name: summary(series) for name, series in times.items()}
    found = {"bench": "ops_k", "dtype": "bfloat16", "D": WIDE, "N": rows, "us": us}
    found["ratios"] = {
        "k16_over_k1": ratio_of(times["k16"], times["k1"]),
        "a_over_a": ratio_of(times["k1 A/A"], times["k1"]),
    }
    return found | {name: ratio["ratio"] for name, ratio in found["ratios"].items()}


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "ops", quick="N = 1 and 64 at D = 4096, bfloat16")
    arguments = parser.parse_args(given)
    on_gpu = torch.cuda.is_available()
    rows = GPU_ROWS if on_gpu else ROWS
    quick = [("additive", "bfloat16", WIDE, n) for n in ((1, 64, 16384) if on_gpu else (1, 64))]
    quick += [("mixed", "bfloat16", WIDE, n) for n in (1, 64)]
    full = [
        (f, t, d, n)
        for f in ("additive", "mixed")
        for t in KINDS
        for d in WIDTHS
        for n in (rows if on_gpu or (t, d) == ("bfloat16", WIDE) else FEWER_ROWS[d])
    ]
    cases, rounds = (quick, 11) if arguments.quick else (full, 7)
    found = measure(cases, rounds, [] if arguments.quick or on_gpu else quick)
    if not on_gpu:
        found = itertools.chain(found, (collapsed(n, 25) for n in (1, 64)))
    lines = script.kept(arguments, found, SEED)
    script.say(arguments, **_bars(lines))


def _bars(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The object of ``--json``: bfloat16, D = 4096, by form and rows."""
    found = [
        line
        for line in lines
        if (line.get("form"), line["dtype"], line["D"]) == ("additive", "bfloat16", WIDE)
    ]
    mixed = [
        line
        for line in lines
        if (line.get("form"), line["dtype"], line["D"]) == ("mixed", "bfloat16", WIDE)
    ]
    by_rows = {f"N{line['N']}": line for line in found}
    k16 = {f"N{line['N']}": line["k16_over_k1"] for line in lines if line["bench"] == "ops_k"}
    return {
        "speedup_vs_eager": {name: line["speedup_vs_eager"] for name, line in by_rows.items()},
        "steered_over_unsteered": by_rows["N1"]["steered_over_unsteered"],
        "steered_over_unsteered_by_rows": {
            name: line["steered_over_unsteered"] for name, line in by_rows.items()
        },
        "k16_over_k1": k16.get("N1"),
        "k16_over_k1_by_rows": k16,
        "mixed_speedup_vs_eager": {f"N{line['N']}": line["speedup_vs_eager"] for line in mixed},
        "mixed_speedup_vs_batched": {f"N{line['N']}": line["speedup_vs_batched"] for line in mixed},
        "a_over_a": {name: line["a_over_a"] for name, line in by_rows.items()},
    }


@pytest.mark.parametrize("rows", [1, 64, 512])
@pytest.mark.parametrize("form", ["additive", "mixed"])
@pytest.mark.parametrize("version", ["eager", "unsteered", "steered", "plain"])
def test_op(benchmark: Any, version: str, form: str, rows: int) -> None:
    """The door for pytest-benchmark: ``pytest benchmarks --benchmark-only -k "64 and mixed"``."""
    benchmark.group = f"{form}, bfloat16, D=4096, N={rows}"
    with torch.inference_mode():
        benchmark(versions(form, torch.bfloat16, WIDE, rows)[version])


if __name__ == "__main__":
    main()
