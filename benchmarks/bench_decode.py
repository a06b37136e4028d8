"""A decode step: stock transformers, forward hooks, patched and idle, patched and steered at every layer.

For each mode (eager, compiled, captured as a CUDA graph), batch size, number of vectors per plan, and spread of plans
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
from harness.decode_runners import MODES, SPREADS, Runner, bank, op_times, plans_for
from harness.machine import setting
from harness.shapes import DTYPES, SHAPES, random_model
from harness.spreads import ratio_interval, summary
from harness.timing import WARM, single_calls
from steerfast.models.load import load_model

SEED = 0
PROMPT = 16
QUICK_STEPS = 60


@torch.inference_mode()
def step_times(
    model: Any, batch: int, plans: list[Any], mode: str, steps: int, hooks: bool
) -> dict[str, list[float]]:
    """{variant: milliseconds of each step}. Step i of every variant comes before step i + 1 of any."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary, device = int(model.config.vocab_size), next(model.parameters()).device
    prompt = torch.randint(vocabulary, (batch, PROMPT), generator=generator).to(device)
    shape = steps + WARM, batch, 1
    following = torch.randint(vocabulary, shape, generator=generator).to(device)
    nothing: list[Any] = [None] * batch
    runners = {
        "stock": Runner(model, prompt, mode),
        "patched": Runner(model, prompt, mode, plans=nothing, attached=True),
        "steered": Runner(model, prompt, mode, plans=plans, attached=True),
        "patched again": Runner(model, prompt, mode, plans=nothing, attached=True),
    }
    if hooks and mode == "eager":
        runners["hooks"] = Runner(model, prompt, mode, plans=plans, hooks=True)
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
    hooks = arguments.operator == "add"
    times = step_times(model, batch, plans, mode, arguments.steps, hooks)
    ratio = {
        "steered_over_stock": ("steered", "stock"),
        "steered_over_patched": ("steered", "patched"),
        "patched_over_stock": ("patched", "stock"),
        "a_over_a": ("patched again", "patched"),
        "hooks_over_stock": ("hooks", "stock"),
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
            if above in times
        },
        **setting(SEED),
    }
    if model.device.type == "cpu":
        line["op_us"] = us = op_times(model, batch, plans)
        extra = us["steered"]["median"] - us["unsteered"]["median"]
        step = 1e3 * line["ms"]["patched"]["median"]
        line["steering_share"] = extra * model.config.num_hidden_layers / step
    tell(line)
    return line


def tell(line: dict[str, Any]) -> None:
    steered, control = line["ratios"]["steered_over_patched"], line["ratios"]["a_over_a"]
    stock, ms = line["ratios"]["steered_over_stock"], line["ms"]
    print(
        f"{line['mode']:>8} batch {line['batch']:>3}, {line['vectors']} x {line['operator']}, {line['distinct']:>3} plans: "
        + ", ".join(f"{name} {time['median']:.2f}" for name, time in ms.items())
        + f" ms; steered/patched {steered['ratio']:.3f} [{steered['low']:.3f}, {steered['high']:.3f}]"
        f" (A/A {control['ratio']:.3f}), steered/stock {stock['ratio']:.3f} [{stock['low']:.3f}, {stock['high']:.3f}]"
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
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.steps, arguments.batch = QUICK_STEPS, arguments.batch[-1:]
    if arguments.shape:
        dtype = DTYPES[arguments.dtype or "bfloat16"]
        model, name = random_model(arguments.shape, dtype), f"{arguments.shape} shape, random"
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
