"""The paper's grid search, by the sweep engine and by the paper's own procedure, on a sample of the same cells.

A cell is one question under one coefficient of one vector at one layer; its answer is the next token. The grid has 8
layers x 10 coefficients x 2 signs for each of five behaviours. Compared, in turns:

- ``paper``: one question at a time, ``generate`` of one token, a forward hook that adds the vector;
- ``forward``: the same with one forward (last logits only) instead of ``generate``, the leanest loop there is;
- ``batched``: the engine without forking, every cell a row of its own;
- ``forked``: the engine.

All on the same model, dtype and threads. The engine runs all 160 plans over a sample of questions, the loops a random
sample of their cells; times are per cell. ``speedup`` = paper / forked over the five behaviours; its two shares multiply:
batching = paper / batched, forking = batched / forked. ``answers_equal``: every sampled cell has the same token, but for
cells whose two best logits are closer than the dtype's rounding.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from harness import script
from harness.machine import setting
from harness.shapes import DTYPES, SHAPES, random_model
from harness.spreads import ratio_of, spread
from harness.sweep_runners import Answers, Cell, LastLogits, encode, grid, loop, words
from harness.timing import rotated
from steerfast import Plan, SteeringVector
from steerfast.experiments import questions
from steerfast.extraction.extract import extract_pairs
from steerfast.models.load import load_model
from steerfast.sweep.engine import sweep

SEED = 13
# Logits of equal streams differ by rounding; closer than this share of the largest they are a tie.
TIE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


Versions = dict[str, tuple[Callable[[], Any], int]]  # name -> what answers cells, and how many
Times = dict[
    str, dict[str, list[float]]
]  # behaviour -> version -> milliseconds a cell, a figure a round


def versions(
    model: Any, plans: list[Plan], prompts: list[list[int]], cells: list[Cell]
) -> Versions:
    """The loops answer ``cells``, the engine all cells of the plans (without forking: of some) on the prompts."""
    some = plans[:: max(1, len(plans) // 32)]  # all layers are among them

    def engine(plans: list[Plan], forking: bool = True) -> Callable[[], Any]:
        return lambda: sweep(model, plans, prompts, lambda head: Answers(head), forking=forking)

    def looped(generate: bool) -> Callable[[], Any]:
        return lambda: loop(model, plans, prompts, cells, generate)

    found: Versions = {
        "paper": (looped(True), len(cells)),
        "forward": (looped(False), len(cells)),
        "batched": (engine(some, forking=False), len(some) * len(prompts)),
        "forked": (engine(plans), len(plans) * len(prompts)),
    }
    return found | {"forked again": found["forked"]}


def in_turn(found: Versions, rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds a cell of each version, round by round, and what each found last."""
    times: dict[str, list[float]] = {name: [] for name in found}
    results = {}
    for number in range(rounds):
        for name in rotated(list(found), number):
            function, count = found[name]
            begin = time.perf_counter()
            results[name] = function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - begin) / count)
    return times, results


class Compared(NamedTuple):
    """How many cells' tokens were compared, how many differ, how many of those in a tie, and the greatest relative
    difference of the logits of a few."""

    checked: int
    unequal: int
    ties: int
    max_relative_logit_gap: float


def compared(
    cells: list[Cell],
    looped: list[torch.Tensor],
    forked: torch.Tensor,
    exact: torch.Tensor,
    tie: float,
) -> Compared:
    """looped: the loop's logits of each cell. forked: the engine's answers of all. exact: its logits [few, prompts, V] of the
    plans of the first few cells."""
    unequal = ties = 0
    gaps = [0.0]
    for number, (cell, logits) in enumerate(zip(cells, looped, strict=True)):
        token, first, second, largest = forked[cell.plan, cell.prompt].tolist()
        if int(token) != int(logits.argmax()):
            close = first - second <= tie * largest
            ties, unequal = ties + close, unequal + (not close)
        if number < len(exact):
            gap = (exact[number, cell.prompt] - logits.double().cpu()).abs().max()
            gaps.append(float(gap) / float(logits.abs().max()))
    return Compared(len(cells), unequal, ties, max(gaps))


def measured(
    model: Any, sets: dict[str, tuple[list[Plan], list[list[int]]]], rounds: int, looped: int
) -> Iterator[tuple[Times, Compared]]:
    """The times of every behaviour so far, and all its answers compared, after each behaviour."""
    times: Times = {}
    found = []
    rng = random.Random(SEED)
    for name, (plans, prompts) in sets.items():
        drawn = [
            Cell(rng.randrange(len(plans)), rng.randrange(len(prompts))) for _ in range(looped)
        ]
        cells = sorted(set(drawn))
        loop(model, plans, prompts, cells[:2], True)  # warm
        sweep(model, plans[:2], prompts[:1], lambda head: Answers(head))
        times[name], results = in_turn(versions(model, plans, prompts, cells), rounds)
        few = [plans[cell.plan] for cell in cells[:8]]
        exact = sweep(model, few, prompts, lambda head: LastLogits(head))
        tie = TIE[model.dtype]
        found.append(compared(cells, results["paper"], results["forked"], exact, tie))
        *counts, gaps = zip(*found, strict=True)
        yield times, Compared(*map(sum, counts), max(gaps))


def speedup(times: Times, slow: str, fast: str) -> dict[str, float]:
    """Ratio of the whole grid's times, round by round: median, 20th and 80th percentile, and range."""
    above, below = (
        [sum(each) for each in zip(*(series[version] for series in times.values()), strict=True)]
        for version in (slow, fast)
    )
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {**ratio_of(above, below), "low": min(ratios), "high": max(ratios)}


def asked_for(
    name: str, arguments: Any, model: Any, tokenizer: Any, rng: random.Random
) -> tuple[list[Plan], list[list[int]]]:
    """A behaviour's grid of plans and prompts: a direction extracted from other questions of it; any will do where the
    weights are random and there is no tokenizer."""
    asked = questions.load(arguments.data, name)
    rng.shuffle(asked)
    tokenize: Callable[[str], list[int]] = words
    depth = int(model.config.num_hidden_layers)
    if tokenizer is None:
        generator = torch.Generator().manual_seed(SEED)
        width = int(model.config.hidden_size)
        directions = {at: torch.randn(width, generator=generator) for at in range(depth)}
        vector = SteeringVector(name, directions, dict.fromkeys(range(depth), math.sqrt(width)))
    else:
        pairs = [one.pair for one in asked[arguments.prompts : arguments.prompts + 24]]
        vector = extract_pairs(model, tokenizer, pairs, name=name)
        tokenize = partial(encode, tokenizer)
    top = int(model.config.vocab_size)
    prompts = [
        [token % top for token in tokenize(one.prompt)] for one in asked[: arguments.prompts]
    ]
    return grid(vector, depth), prompts


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "sweep", quick="one behaviour, one round")
    parser.add_argument("--model", help="default SmolLM2-135M-Instruct")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape instead")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--data", help="folder of questions, as for `steerfast study behaviours`")
    parser.add_argument("--behaviours", nargs="+", help="default: all five")
    parser.add_argument("--prompts", type=int, default=4, help="questions of each behaviour, of 50")
    parser.add_argument(
        "--cells", type=int, default=40, help="cells of each behaviour by the loops"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(given)
    dtype = DTYPES[arguments.dtype]
    if arguments.shape:
        model, tokenizer, label = random_model(arguments.shape, dtype), None, arguments.shape
    else:
        model, tokenizer, label = load_model(arguments.model, dtype=dtype)
    every = questions.PAPER_ORDER if arguments.data else questions.shipped()
    names = arguments.behaviours or every
    if arguments.quick:
        names, arguments.rounds = names[-1:], 1
        arguments.prompts, arguments.cells = min(arguments.prompts, 2), min(arguments.cells, 16)
    rng = random.Random(SEED)
    sets = {name: asked_for(name, arguments, model, tokenizer, rng) for name in names}
    about = {
        "bench": "sweep",
        "model": label,
        "dtype": arguments.dtype,
        "data": "paper" if arguments.data else "shipped",
        "tokens": {name: sum(map(len, ids)) / len(ids) for name, (_, ids) in sets.items()},
        "plans": len(next(iter(sets.values()))[0]),
        "rounds": arguments.rounds,
    }
    # A line after each behaviour, over all so far: the last counts, and where a machine is taken away the last that there is.
    for times, answers in measured(model, sets, arguments.rounds, arguments.cells):
        line = {**about, **figures(times, answers), **setting(SEED)}
        script.keep(arguments, [line])
    tell(line)
    ratios = ("speedup", "speedup_over_forward", "batching", "forking")
    script.say(
        arguments,
        **{name: line[name]["ratio"] for name in ratios},
        **{name: line[name] for name in ("answers_equal", *Compared._fields)},
    )


def figures(times: Times, answers: Compared) -> dict[str, Any]:
    return {
        "ms_per_cell": {
            name: {version: statistics.median(each) for version, each in here.items()}
            for name, here in times.items()
        },
        "speedup": speedup(times, "paper", "forked"),
        "speedup_over_forward": speedup(times, "forward", "forked"),
        "batching": speedup(times, "paper", "batched"),
        "forking": speedup(times, "batched", "forked"),
        "a_over_a": speedup(times, "forked again", "forked"),
        "answers_equal": answers.unequal == 0,
        **answers._asdict(),
    }


def tell(line: dict[str, Any]) -> None:
    for name, each in line["ms_per_cell"].items():
        cells = ", ".join(f"{version} {value:.1f}" for version, value in each.items())
        print(f"{name:>18}, ms a cell: {cells}", file=sys.stderr)
    for what in ("speedup", "speedup_over_forward", "batching", "forking", "a_over_a"):
        print(f"{what:>22} {spread(line[what], 2)}", file=sys.stderr)
    print(
        f"{line['checked']} cells compared, {line['unequal']} unequal, {line['ties']} ties",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
