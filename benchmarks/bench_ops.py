"""The fused ops against what eager Llama with a steering hook does, allocation included.

eager       residual + x in a module, a forward hook adding coefficient * vector, LlamaRMSNorm
unsteered   steer_add_rms_norm, every row in slot -1
steered     steer_add_rms_norm, every row in slot 0
steered A/A the same again
plain       add_rms_norm, which takes no steering arguments
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

sys.path.insert(0, str(Path(__file__).parent))
import harness

from steerfast import ops
from steerfast.reference import Steering

SEED = 0
ROWS = (1, 16, 64, 512, 4096)
WIDTHS = (576, 4096)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
QUICK = [("bfloat16", 4096, rows) for rows in (1, 64)]


class ResidualAdd(torch.nn.Module):
    """Where a hook would sit: the end of a decoder layer."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + x


def versions(dtype: torch.dtype, width: int, rows: int) -> dict[str, Callable[[], Any]]:
    """What is timed, on the same inputs; checked against each other first."""
    torch.manual_seed(SEED)
    x, residual = torch.randn(rows, width).to(dtype), (3 * torch.randn(rows, width)).to(dtype)
    vector = torch.randn(width)
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    weight = norm.weight.detach().normal_(1.0, 0.1)
    slots = torch.zeros(rows, dtype=torch.int32)
    records = torch.tensor([[0, 0, 0, 0]], dtype=torch.int32)
    steering = Steering(slots, torch.ones(rows), records, 2.0 * vector[None])
    idle = steering._replace(row_slot=slots - 1)
    add = ResidualAdd()
    steered_by_hook = vector.to(dtype)
    add.register_forward_hook(lambda module, args, out: out + 2.0 * steered_by_hook)

    def eager() -> Any:
        stream = add(x, residual)
        return stream, norm(stream)

    def steered() -> Any:
        return ops.steer_add_rms_norm(x, residual, weight, 1e-5, steering)

    with torch.inference_mode():
        difference = (eager()[0].float() - steered()[0].float()).abs().max()
        assert difference <= 2.0**-5 * residual.float().abs().max(), "the versions disagree"
    return {
        "eager": eager,
        "unsteered": lambda: ops.steer_add_rms_norm(x, residual, weight, 1e-5, idle),
        "steered": steered,
        "steered A/A": lambda: ops.steer_add_rms_norm(x, residual, weight, 1e-5, steering),
        "plain": lambda: ops.add_rms_norm(x, residual, weight, 1e-5),
    }


def measure(cases: list[tuple[str, int, int]], rounds: int) -> list[dict[str, Any]]:
    lines = []
    for dtype, width, rows in cases:
        with torch.inference_mode():
            times = harness.interleave(versions(DTYPES[dtype], width, rows), rounds=rounds)
        median = {name: time["median"] for name, time in times.items()}
        ratios = {
            "speedup_vs_eager": median["eager"] / median["steered"],
            "steered_over_unsteered": median["steered"] / median["unsteered"],
            "steered_over_plain": median["steered"] / median["plain"],
            "a_over_a": median["steered A/A"] / median["steered"],
        }
        lines.append({"bench": "ops", "dtype": dtype, "D": width, "N": rows, "us": times, **ratios})
        shown = "  ".join(f"{name} {value:9.1f}" for name, value in median.items())
        speedup, over = ratios["speedup_vs_eager"], ratios["steered_over_unsteered"]
        print(
            f"{dtype:>9} D={width} N={rows:<5} us: {shown}   x{speedup:.1f}  {over:.3f}",
            file=sys.stderr,
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="N = 1 and 64 at D = 4096, bfloat16")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--save", action="store_true", help="append to results/ops.jsonl")
    arguments = parser.parse_args()
    cases = QUICK if arguments.quick else [(t, d, n) for t in DTYPES for d in WIDTHS for n in ROWS]
    lines = [
        {**line, **harness.setting(SEED)} for line in measure(cases, 15 if arguments.quick else 9)
    ]
    if arguments.save:
        print(f"appended to {harness.save('ops', lines)}", file=sys.stderr)
    if arguments.json:
        found = {
            f"N{line['N']}": line
            for line in lines
            if (line["dtype"], line["D"]) == ("bfloat16", 4096)
        }
        over = {name: line["steered_over_unsteered"] for name, line in found.items()}
        print(
            json.dumps(
                {
                    "speedup_vs_eager": {
                        name: line["speedup_vs_eager"] for name, line in found.items()
                    },
                    "steered_over_unsteered": over["N1"],
                    "steered_over_unsteered_by_rows": over,
                    "a_over_a": {name: line["a_over_a"] for name, line in found.items()},
                    "device": harness.device_name(),
                }
            )
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("version", ["eager", "unsteered", "steered", "plain"])
def test_op(benchmark: Any, version: str, rows: int, width: int, dtype: str) -> None:
    """The door for pytest-benchmark: ``pytest benchmarks --benchmark-only -k "64 and 4096"``."""
    benchmark.group = f"{dtype}, D={width}, N={rows}"
    with torch.inference_mode():
        benchmark(versions(DTYPES[dtype], width, rows)[version])


if __name__ == "__main__":
    main()
