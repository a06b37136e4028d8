"""A decode step: stock transformers, forward hooks, patched and idle, patched and steered at every layer.

``without reads``: steered, attached with ``programs=0``, so that the kernel that runs knows no reading terms; ``room for
reads``: attached with room for some, so that it does.

For each mode (eager, compiled, captured as a CUDA graph, compiled and captured), batch size, number of vectors per plan, and spread of plans
over the batch. On a CPU also the time of the op alone, steered and not, times the number of layers over the step's:
``steering_share``. Single steps alternate between the variants; intervals are a bootstrap over steps. A ratio counts
as above 1 only if its whole interval does. ``again`` variants are A/A controls.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch

from harness import script
from harness.decode_runners import (
    MODES,
    SPREADS,
    Runner,
    bank,
    check,
    op_times,
    plans_for,
)
from harness.machine import setting
from harness.shapes import DTYPES, SHAPES, random_model
from harness.spreads import ratio_interval, spread, summary
from harness.timing import WARM, single_calls
from steerfast.models.load import load_model
from steerfast.ops import backends

SEED = 0
PROMPT = 16
VARIANTS = (
    "stock",
    "patched",
    "steered",
    "patched again",
    "hooks",
    "without reads",
    "room for reads",
)
CONSTANT = ("hooks", "without reads", "room for reads")  # for plans of constants: --operator add
QUICK_STEPS = 60


@torch.inference_mode()
def step_times(
    model: Any,
    batch: int,
    plans: list[Any],
    mode: str,
    steps: int,
    variants: Sequence[str],
    compiler: str,
) -> dict[str, list[float]]:
    """{variant: milliseconds of each step}. Step i of every variant comes before step i + 1 of any."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary, device = int(model.config.vocab_size), next(model.parameters()).device
    prompt = torch.randint(vocabulary, (batch, PROMPT), generator=generator).to(device)
    shape = steps + WARM, batch, 1
    following = torch.randint(vocabulary, shape, generator=generator).to(device)
    nothing: list[Any] = [None] * batch
    made: dict[str, dict[str, Any]] = {
        "stock": {},
        "patched": {"plans": nothing, "attached": True},
        "steered": {"plans": plans, "attached": True},
        "patched again": {"plans": nothing, "attached": True},
        "without reads": {"plans": plans, "attached": True, "programs": 0},
        "room for reads": {"plans": plans, "attached": True, "programs": batch},
        "hooks": {"plans": plans, "hooks": True},
    }
    runners = {
        name: Runner(model, prompt, mode, compiler=compiler, **made[name]) for name in variants
    }
    check({name: one.step(following[0]).clone() for name, one in runners.items()})
    left = {name: iter(following) for name in runners}
    versions = {
        name: (lambda runner=runner, left=left[name]: runner.step(next(left)))
        for name, runner in runners.items()
    }
    times = single_calls(versions, steps)
    for runner in runners.values():
        runner.close()
    return {name: [us / 1e3 for us in series] for name, series in times.items()}


def measured(
    model: Any, name: str, case: tuple[str, int, int, str], arguments: Any
) -> dict[str, Any]:
    """The result line of one case."""
    mode, batch, terms, spread = case
    plans = plans_for(bank(model, SEED), batch, terms, spread, arguments.operator, SEED)
    constant = arguments.operator == "add"
    variants = [name for name in arguments.variants if constant or name not in CONSTANT]
    times = step_times(model, batch, plans, mode, arguments.steps, variants, arguments.compiler)
    ratio = {
        "steered_over_stock": ("steered", "stock"),
        "steered_over_patched": ("steered", "patched"),
        "patched_over_stock": ("patched", "stock"),
        "a_over_a": ("patched again", "patched"),
        "hooks_over_stock": ("hooks", "stock"),
        "without_reads_over_patched": ("without reads", "patched"),
        "room_for_reads_over_patched": ("room for reads", "patched"),
    }
    line = {
        "bench": "decode",
        "model": name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "mode": mode,
        "batch": batch,
        "vectors": terms,
        "operator": arguments.operator,
        "plans": spread,
        "distinct": len({plan.digest for plan in plans if plan is not None}),
        "steps": arguments.steps,
        "ms": {name: summary(series) for name, series in times.items()},
        "ratios": {
            key: ratio_interval(times[above], times[below])
            for key, (above, below) in ratio.items()
            if above in times and below in times
        },
        **setting(SEED),
    }
    if model.device.type == "cuda":
        line["backend"] = backends.resolve(None, model.device)
    if model.device.type == "cpu" and "patched" in times:
        line["op_us"] = us = op_times(model, batch, plans)
        extra = us["steered"]["median"] - us["unsteered"]["median"]
        step = 1e3 * line["ms"]["patched"]["median"]
        line["steering_share"] = extra * model.config.num_hidden_layers / step
    tell(line)
    return line


def tell(line: dict[str, Any]) -> None:
    ms = line["ms"]
    ratios = ", ".join(f"{name} {spread(ratio, 3)}" for name, ratio in line["ratios"].items())
    print(
        f"{line['mode']:>8} batch {line['batch']:>3}, {line['vectors']} x {line['operator']}, {line['distinct']:>3} plans: "
        + ", ".join(f"{name} {time['median']:.2f}" for name, time in ms.items())
        + f" ms; {ratios}"
        + (f", steering is {line['steering_share']:.2%} of a step" if "op_us" in line else ""),
        file=sys.stderr,
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "decode", quick="one case, batch 16, 60 steps")
    parser.add_argument(
        "--model", help="folder or hub id of a Llama; default SmolLM2-135M-Instruct"
    )
    parser.add_argument(
        "--shape", choices=SHAPES, help="a Llama of this shape with random weights instead"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, else what is fastest"
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["eager"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--vectors", type=int, nargs="+", default=[1], help="terms per plan")
    parser.add_argument("--plans", nargs="+", choices=SPREADS, default=["distinct"])
    parser.add_argument(
        "--operator", choices=("add", "clamp"), default="add", help="clamp: reading terms"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    parser.add_argument(
        "--layers", type=int, help="with --shape: of another depth than the shape's"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all"
    )
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.steps, arguments.batch = QUICK_STEPS, arguments.batch[-1:]
    if arguments.shape:
        dtype = DTYPES[arguments.dtype or "bfloat16"]
        model = random_model(arguments.shape, dtype, arguments.layers)
        depth = "" if arguments.layers is None else f", {arguments.layers} layers"
        name = f"{arguments.shape} shape{depth}, random"
    else:
        chosen = DTYPES[arguments.dtype] if arguments.dtype else None
        model, _, name = load_model(arguments.model, dtype=chosen)
    cases = itertools.product(arguments.mode, arguments.batch, arguments.vectors, arguments.plans)
    lines = []
    for case in cases:
        lines.append(measured(model, name, case, arguments))
        script.keep(arguments, lines[-1:])  # at once: some machines are lent for minutes
    last = lines[-1]
    flat = {name: ratio["ratio"] for name, ratio in last["ratios"].items()}
    script.say(arguments, **flat, intervals=last["ratios"], ms=last["ms"], cases=len(lines))


if __name__ == "__main__":
    main()
