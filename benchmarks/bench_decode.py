"""A decode step of the real model: stock, patched and idle, patched and steered at every layer.

Single steps alternate between the variants; the interval is a bootstrap over steps. A ratio counts as
above 1 only if its whole interval does. ``stock again`` is the A/A control.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import harness
import torch

from steerfast.experiments.decode_speed import step_times
from steerfast.models import find_decoder
from steerfast.models.load import load_model
from steerfast.plan import Plan
from steerfast.term import Term
from steerfast.vector import SteeringVector

SEED = 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def every_layer(model: torch.nn.Module) -> Plan:
    """A small random direction at the output of every layer."""
    decoder, _ = find_decoder(model)
    generator = torch.Generator().manual_seed(SEED)
    config = decoder.config
    directions = {
        layer: 0.01 * torch.randn(config.hidden_size, generator=generator)
        for layer in range(config.num_hidden_layers)
    }
    return Plan((Term(SteeringVector("random", directions)),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="folder or hub id of a Llama; default SmolLM2-135M-Instruct"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="default: what this device multiplies fastest"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="200 steps")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--save", action="store_true", help="append to results/decode.jsonl")
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, dtype=DTYPES[arguments.dtype] if arguments.dtype else None)
    steps = 200 if arguments.quick else arguments.steps
    times = step_times(
        loaded.model,
        every_layer(loaded.model),
        batch=arguments.batch,
        steps=steps,
        control=True,
        seed=SEED,
    )
    ratios = {
        "steered_over_stock": harness.ratio_interval(times["steered"], times["stock"]),
        "steered_over_patched": harness.ratio_interval(times["steered"], times["patched"]),
        "patched_over_stock": harness.ratio_interval(times["patched"], times["stock"]),
        "a_over_a": harness.ratio_interval(times["stock again"], times["stock"]),
    }
    line = {
        "bench": "decode",
        "model": loaded.name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "batch": arguments.batch,
        "steps": steps,
        "ms": {name: harness.summary(series) for name, series in times.items()},
        "ratios": ratios,
        **harness.setting(SEED),
    }
    for name, time in line["ms"].items():
        print(
            f"{name:>12} {time['median']:7.2f} ms  [{time['p20']:.2f}, {time['p80']:.2f}]",
            file=sys.stderr,
        )
    for name, ratio in ratios.items():
        print(
            f"{name:>22} {ratio['ratio']:.3f}  95% [{ratio['low']:.3f}, {ratio['high']:.3f}]",
            file=sys.stderr,
        )
    if arguments.save:
        print(f"appended to {harness.save('decode', [line])}", file=sys.stderr)
    if arguments.json:
        flat = {name: ratio["ratio"] for name, ratio in ratios.items()}
        print(json.dumps({**flat, "intervals": ratios, "ms": line["ms"], "device": line["device"]}))


if __name__ == "__main__":
    main()
