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

import argparse
import json
import math
import random
import re
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import harness
import torch
from shapes import DTYPES, random_model

from steerfast import Plan, SteeringVector
from steerfast.experiments import questions
from steerfast.experiments.schemes import individual
from steerfast.extraction.extract import extract_pairs
from steerfast.models.load import load_model
from steerfast.sweep.engine import sweep

SEED = 13
COEFFICIENTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # of the median stream norm
# Logits of equal streams differ by rounding; closer than this share of the largest they are a tie.
TIE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


class Cell(NamedTuple):
    """One point of the grid on one question, by their numbers."""

    plan: int
    prompt: int


class LastLogits:
    """The whole logits of the last token."""

    last_only = True

    def __init__(self, head: Any) -> None:
        self.head, self.width = head, int(head.weight.shape[0])

    def __call__(self, normed: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        return self.head(normed[:, -1]).float()  # type: ignore[no-any-return]


class Answers:
    """The two best tokens of the last position: id, logit, logit of the second, and of largest magnitude."""

    last_only, width = True, 4

    def __init__(self, head: Any) -> None:
        self.head = head

    def __call__(self, normed: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        parts = []
        for rows in normed[:, -1].split(256):
            logits = self.head(rows).float()
            best = logits.topk(2, dim=1)
            first = best.indices[:, :1].double()
            parts.append(torch.cat([first, best.values, logits.abs().amax(1, keepdim=True)], 1))
        return torch.cat(parts)


def grid(vector: SteeringVector, layers: int) -> list[Plan]:
    """The paper's grid at this model's depth: its layers 0, 5, 10, ..., 29, 31 of 32."""
    chosen = [round(layer * (layers - 1) / 31) for layer in (0, 5, 10, 15, 20, 25, 29, 31)]
    return [
        individual(vector, layer, sign * c, scale="stream")
        for layer in chosen
        for c in COEFFICIENTS
        for sign in (1, -1)
    ]


@torch.inference_mode()
def loop(
    model: Any,
    plans: Sequence[Plan],
    prompts: Sequence[list[int]],
    cells: Sequence[Cell],
    generate: bool,
) -> list[torch.Tensor]:
    """The last logits of each cell, one at a time, by a forward hook."""
    found = []
    device = next(model.parameters()).device
    for cell in cells:
        (term,) = plans[cell.plan].terms
        (layer,) = term.steered_layers
        unit = term.unit(layer) * term.stream_norm(layer)
        delta = (term.coefficient * unit).to(device=device, dtype=model.dtype)
        hook = model.model.layers[layer].register_forward_hook(
            lambda module, args, output, delta=delta: output + delta
        )
        ids = torch.tensor([prompts[cell.prompt]], device=device)
        if generate:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits = out.logits[0][0]
        else:
            logits = model(ids, logits_to_keep=1).logits[0, -1]
        hook.remove()
        found.append(logits.float())
    return found


def words(text: str) -> list[int]:
    """Token ids for a model with random weights: one a word or mark, as many as a tokenizer would give."""
    return [zlib.crc32(word.encode()) for word in re.findall(r"\w+|[^\w\s]", text)]


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def seconds(function: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def measured(
    model: Any, sets: dict[str, tuple[list[Plan], list[list[int]]]], rounds: int, looped: int
) -> dict[str, Any]:
    """Milliseconds a cell of each version and behaviour (a list over rounds), and the answers compared."""
    times: dict[str, dict[str, list[float]]] = {}
    checked = unequal = ties = 0
    worst = 0.0
    rng = random.Random(SEED)
    for name, (plans, prompts) in sets.items():
        every = len(plans) * len(prompts)
        some = plans[:: max(1, len(plans) // 32)]  # all layers are among them
        cells = [
            Cell(rng.randrange(len(plans)), rng.randrange(len(prompts))) for _ in range(looped)
        ]
        cells = sorted(set(cells))
        versions = {
            "paper": (lambda p=plans, q=prompts, c=cells: loop(model, p, q, c, True), len(cells)),
            "forward": (
                lambda p=plans, q=prompts, c=cells: loop(model, p, q, c, False),
                len(cells),
            ),
            "batched": (
                lambda p=some, q=prompts: sweep(
                    model, p, q, lambda head, _: Answers(head), forking=False
                ),
                len(some) * len(prompts),
            ),
            "forked": (
                lambda p=plans, q=prompts: sweep(model, p, q, lambda head, _: Answers(head)),
                every,
            ),
        }
        versions["forked again"] = versions["forked"]
        loop(model, plans, prompts, cells[:2], True)  # warm
        sweep(model, plans[:2], prompts[:1], lambda head, _: Answers(head))
        times[name] = {version: [] for version in versions}
        for number in range(rounds):
            for version in harness.rotated(list(versions), number):
                function, count = versions[version]
                took, result = seconds(function)
                times[name][version].append(1e3 * took / count)
                if version == "forked":
                    forked = result
                elif version == "paper":
                    looped_logits = result
        exact = sweep(
            model,
            [plans[cell.plan] for cell in cells[:8]],
            prompts,
            lambda head, _: LastLogits(head),
        )
        for number, (cell, logits) in enumerate(zip(cells, looped_logits, strict=True)):
            token, first, second, largest = forked[cell.plan, cell.prompt].tolist()
            checked += 1
            if int(token) != int(logits.argmax()):
                tie = first - second <= TIE[model.dtype] * largest
                ties, unequal = ties + tie, unequal + (not tie)
            if number < 8:
                gap = (exact[number, cell.prompt] - logits.double().cpu()).abs().max()
                worst = max(worst, float(gap) / float(logits.abs().max()))
    return {
        "ms": times,
        "checked": checked,
        "unequal": unequal,
        "ties": ties,
        "max_relative_logit_gap": worst,
    }


def speedup(times: dict[str, dict[str, list[float]]], slow: str, fast: str) -> dict[str, float]:
    """Ratio of the whole grid's times, round by round: median and range."""
    rounds = len(next(iter(times.values()))[fast])
    ratios = [
        sum(each[slow][number] for each in times.values())
        / sum(each[fast][number] for each in times.values())
        for number in range(rounds)
    ]
    each = harness.summary(ratios)
    extremes = {"low": min(ratios), "high": max(ratios)}
    return {"ratio": each["median"], "p20": each["p20"], "p80": each["p80"], **extremes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default SmolLM2-135M-Instruct")
    parser.add_argument("--shape", help="a random model of this shape instead: llama-2-7b, tiny")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--data", help="folder of questions, as for `steerfast study behaviours`")
    parser.add_argument("--behaviours", nargs="+", help="default: all five")
    parser.add_argument("--prompts", type=int, default=4, help="questions of each behaviour, of 50")
    parser.add_argument(
        "--cells", type=int, default=40, help="cells of each behaviour by the loops"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one behaviour, one round")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--save", action="store_true", help="append to results/sweep.jsonl")
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype]
    tokenize: Any = words
    if arguments.shape:
        model, label = random_model(arguments.shape, dtype), arguments.shape
    else:
        model, tokenizer, label = load_model(arguments.model, dtype=dtype)
        tokenize = partial(encode, tokenizer)
    names = arguments.behaviours or (
        questions.PAPER_ORDER if arguments.data else questions.shipped()
    )
    if arguments.quick:
        names, arguments.rounds = names[-1:], 1
        arguments.prompts, arguments.cells = min(arguments.prompts, 2), min(arguments.cells, 16)
    sets = {}
    rng = random.Random(SEED)
    for name in names:
        asked = questions.load(arguments.data, name)
        rng.shuffle(asked)
        if arguments.shape:  # random weights: any direction will do
            generator = torch.Generator().manual_seed(SEED)
            width, depth = int(model.config.hidden_size), int(model.config.num_hidden_layers)
            directions = {at: torch.randn(width, generator=generator) for at in range(depth)}
            norms = dict.fromkeys(range(depth), math.sqrt(width))
            vector = SteeringVector(name, directions, norms)
        else:
            pairs = [one.pair for one in asked[arguments.prompts : arguments.prompts + 24]]
            vector = extract_pairs(model, tokenizer, pairs, name=name)
        ids = [tokenize(one.prompt) for one in asked[: arguments.prompts]]
        top = int(model.config.vocab_size)
        sets[name] = (
            grid(vector, int(model.config.num_hidden_layers)),
            [[token % top for token in each] for each in ids],
        )
    found = measured(model, sets, arguments.rounds, arguments.cells)
    times = found.pop("ms")
    line = {
        "bench": "sweep",
        "model": label,
        "dtype": arguments.dtype,
        "data": "paper" if arguments.data else "shipped",
        "tokens": {name: sum(map(len, ids)) / len(ids) for name, (_, ids) in sets.items()},
        "plans": len(next(iter(sets.values()))[0]),
        "rounds": arguments.rounds,
        "ms_per_cell": {
            name: {version: statistics.median(each) for version, each in here.items()}
            for name, here in times.items()
        },
        "speedup": speedup(times, "paper", "forked"),
        "speedup_over_forward": speedup(times, "forward", "forked"),
        "batching": speedup(times, "paper", "batched"),
        "forking": speedup(times, "batched", "forked"),
        "a_over_a": speedup(times, "forked again", "forked"),
        "answers_equal": found["unequal"] == 0,
        **found,
        **harness.setting(SEED),
    }
    for name, each in line["ms_per_cell"].items():
        cells = ", ".join(f"{version} {value:.1f}" for version, value in each.items())
        print(f"{name:>18}, ms a cell: {cells}", file=sys.stderr)
    for what in ("speedup", "speedup_over_forward", "batching", "forking", "a_over_a"):
        ratio = line[what]
        print(
            f"{what:>22} {ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            file=sys.stderr,
        )
    print(
        f"{line['checked']} cells compared, {line['unequal']} unequal, {line['ties']} ties",
        file=sys.stderr,
    )
    if arguments.save:
        harness.save("sweep", [line])
    if arguments.json:
        said = {
            "speedup": line["speedup"]["ratio"],
            "speedup_over_forward": line["speedup_over_forward"]["ratio"],
            "batching": line["batching"]["ratio"],
            "forking": line["forking"]["ratio"],
            **{
                name: line[name]
                for name in (
                    "answers_equal",
                    "checked",
                    "unequal",
                    "ties",
                    "max_relative_logit_gap",
                    "device",
                )
            },
        }
        print(json.dumps(said))


if __name__ == "__main__":
    main()
