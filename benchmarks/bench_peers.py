"""steerfast next to what one would use instead, on the same model in the same process.

Correctness first: each peer against the model in float64 (peers/agreement.py), on a small random Llama. Then a decode
step, one vector and five at five layers (the paper's simultaneous case), at several batch sizes: single steps of all
peers in turn, so ratios are of one run. A step of a real model is mostly matrix products, in whose noise a hook drowns; so
the same is timed on a model of Llama-2-7B's width with next to nothing in it, per steered layer. Without a clock: kernels,
bytes and host syncs that a peer adds for each layer, and whether torch.compile makes one graph of the steered model.

Each environment (peers/environments.py) is a process of its own in which steerfast and a bare hook run beside its peers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from harness import script
from harness.machine import setting
from harness.shapes import SHAPES, random_model
from harness.spreads import ratio_interval, summary
from harness.timing import single_calls
from peers import baselines, environments, registry
from peers.agreement import check
from peers.peer import Peer
from peers.stepping import compiles, extra_cost, steppers, task_for
from peers.tiny import tiny_llama, tiny_tokenizer
from steerfast.models.load import load_model

SEED = 0
BATCHES = (1, 8, 64)
STEPS = {1: 20, 8: 10, 64: 7}
COUNTS = (1, 5)  # vectors, each at a layer of its own
OURS = "steerfast"
BESIDE = ("hook", OURS)  # beside the peers of every environment
THIN_STEPS = 30
FACTS_LAYERS, FACTS_BATCH = 5, 4
OPERATIONS = ("add", "preserve", "ablate")


def peers_in(environment: str) -> dict[str, Peer]:
    """The peers that are measured in a process of this environment ("none": without any library)."""
    if environment == "none":
        return {peer.name: peer for peer in baselines.PEERS}
    return {name: registry.PEERS[name] for name in BESIDE} | registry.peers_of(environment)


def facts(environment: str, peers: dict[str, Peer], quick: bool) -> list[dict[str, Any]]:
    """Agreement, counts and capabilities: a line for each peer at home in the environment."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = tiny_llama().to(device), tiny_tokenizer()
    lines = []
    for name, peer in peers.items():
        if peer.environment != environment and environment != "none":
            continue
        outcomes = check(peer, model, tokenizer)
        costs = {
            operation: extra_cost(
                peer, model, tokenizer, task_for(model, FACTS_LAYERS, operation), FACTS_BATCH
            )
            for operation in OPERATIONS
            if operation == "add" or operation in peer.operations
        }
        cost = costs["add"]
        line = {
            "bench": "peers facts",
            "peer": name,
            "package": peer.package,
            "licence": peer.licence,
            "site": peer.site,
            "note": peer.note,
            "per_row": peer.per_row,
            "outcomes": {case: outcome._asdict() for case, outcome in outcomes.items()},
            "extra_per_layer": {operation: one._asdict() for operation, one in costs.items()},
            "steered_layers": FACTS_LAYERS,
            "fullgraph": ""
            if quick
            else compiles(peer, model, tokenizer, task_for(model, FACTS_LAYERS)),
        }
        lines.append(line)
        told = {case: one for case, one in outcomes.items() if one.status in ("wrong", "fails")}
        said = ", ".join(f"{case}: {one.status} ({one.reason})" for case, one in told.items())
        print(
            f"{name:>17}: {cost.kernels:+.1f} kernels, {cost.bytes:+.1f} tensors, {cost.syncs:.1f} syncs a layer; "
            f"one graph: {line['fullgraph'] or '-'}; {said or 'agrees wherever it takes part'}",
            file=sys.stderr,
        )
    return lines


@torch.inference_mode()
def timed(
    label: str,
    model: Any,
    tokenizer: Any,
    peers: dict[str, Peer],
    layers: int,
    batch: int,
    steps: int,
    operation: str = "add",
) -> list[dict[str, Any]]:
    """A line for each peer that has the operation: its step, over steerfast's and over the stock model's, and what it adds
    for a layer."""
    if operation != "add":
        peers = {name: peer for name, peer in peers.items() if operation in peer.operations}
    runners: dict[str, Peer | None] = {"stock": None, "stock again": None, **peers}
    runners[f"{OURS} again"] = peers[OURS]
    with steppers(runners, model, tokenizer, task_for(model, layers, operation), batch) as ready:
        times = single_calls({name: one.step for name, one in ready.items()}, steps)

    def added(name: str) -> dict[str, float]:
        pairs = zip(times[name], times["stock"], strict=True)
        return summary([(mine - stock) / layers for mine, stock in pairs])

    lines = []
    for name in ["stock", *peers]:
        line = {
            "bench": "peers step",
            "model": label,
            "dtype": str(model.dtype).removeprefix("torch."),
            "peer": name,
            "operation": operation,
            "vectors": layers,
            "batch": batch,
            "steps": steps,
            "ms": {key: us / 1e3 for key, us in summary(times[name]).items()},
            "over_steerfast": ratio_interval(times[name], times[OURS]),
            "over_stock": ratio_interval(times[name], times["stock"]),
            "added_us": added(name),
            "a_over_a": ratio_interval(times[f"{OURS} again"], times[OURS]),
            "a_added_us": added("stock again"),
        }
        lines.append(line)
        over = line["over_steerfast"]
        print(
            f"{label} {layers} x {operation}, batch {batch:>2} {name:>17}: {line['ms']['median']:8.2f} ms, "
            f"{over['ratio']:.3f} [{over['low']:.3f}, {over['high']:.3f}] of steerfast, "
            f"{line['added_us']['median']:+.1f} us a layer",
            file=sys.stderr,
        )
    return lines


def inside(environment: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result lines of one environment, in this process, as they are measured."""
    for line in _inside(environment, arguments):
        yield {**line, "environment": environment, **setting(SEED)}


def _inside(environment: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    quick, shape = arguments.quick, arguments.shape
    peers = peers_in(environment)
    yield from facts(environment, peers, quick)
    thin, batches = random_model("thin", torch.bfloat16), BATCHES[:2] if quick else BATCHES
    for batch in (batches[0], batches[-1]):
        steps = THIN_STEPS // (4 if quick else 1)
        for operation in OPERATIONS[:1] if quick else OPERATIONS:
            yield from timed("thin 7B", thin, tiny_tokenizer(), peers, 5, batch, steps, operation)
    if shape:
        model, tokenizer, name = random_model(shape, torch.bfloat16), tiny_tokenizer(), shape
    elif quick:
        model, tokenizer, name = tiny_llama(), tiny_tokenizer(), "tiny Llama"
    else:
        model, tokenizer, name = load_model(arguments.model)
    for layers in COUNTS:
        for batch in batches:
            yield from timed(name, model, tokenizer, peers, layers, batch, STEPS[batch])


def fastest(lines: list[dict[str, Any]]) -> dict[str, str]:
    """{row: who took the least time}, of the peers that steer."""
    found: dict[str, tuple[float, str]] = {}
    for line in lines:
        if not _counts(line):
            continue
        row = f"{line['model']}, {line['vectors']} x {line['operation']}, batch {line['batch']}"
        ratio = line["over_steerfast"]["ratio"]
        if row not in found or ratio < found[row][0]:
            found[row] = ratio, line["peer"]
    return {row: name for row, (_, name) in found.items()}


def _counts(line: dict[str, Any]) -> bool:
    """A time of somebody who steers; steerfast counts once."""
    others = line["peer"] != "stock" and not line["peer"].startswith(f"{OURS},")
    return line["bench"] == "peers step" and others


def overall(lines: list[dict[str, Any]]) -> str:
    """Who has the least geometric mean of ratios to steerfast, over the rows where it was timed."""
    logs: dict[str, list[float]] = {}
    for line in lines:
        if _counts(line):
            logs.setdefault(line["peer"], []).append(math.log(line["over_steerfast"]["ratio"]))
    return min(logs, key=lambda name: sum(logs[name]) / len(logs[name]))


def rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The object's table: facts and times of each peer in short."""
    found = []
    for line in lines:
        if line["bench"] == "peers step":
            keys = ("model", "peer", "operation", "vectors", "batch")
            row = {key: line[key] for key in keys} | {"ms": line["ms"]["median"]}
            found.append(row | {"over_steerfast": line["over_steerfast"]})
        else:
            statuses = {case: one["status"] for case, one in line["outcomes"].items()}
            errors = [one["error"] for one in line["outcomes"].values() if one["status"] == "ok"]
            row = {"peer": line["peer"], "agreement": statuses, "fullgraph": line["fullgraph"]}
            row |= {"max_error": max(errors, default=None), **line["extra_per_layer"]["add"]}
            found.append(row)
    return found


def main(given: Sequence[str] | None = None) -> None:
    quick = "small models, and only environments that are there already"
    parser = environments.inside_options(script.parser(__doc__, "peers", quick=quick))
    parser.add_argument(
        "--environments",
        nargs="*",
        help=f"of {', '.join(environments.NAMES)}; default all, none with no name: only what needs no library",
    )
    parser.add_argument("--model", help="default SmolLM2-135M-Instruct")
    parser.add_argument("--shape", choices=SHAPES, help="a random Llama instead of the model")
    arguments = parser.parse_args(given)
    if arguments.inside:
        environments.hand_back(arguments, list(inside(arguments.inside, arguments)))
        return
    chosen = arguments.environments
    if chosen is None:
        chosen = environments.made() if arguments.quick else list(environments.NAMES)
    lines = []
    for line in () if chosen else inside("none", arguments):
        lines.append(line)
        script.keep(arguments, lines[-1:])
    for environment in sorted(chosen, key=lambda name: name != "main"):
        passed = ["--quick"] * arguments.quick
        for option in ("shape", "model"):
            value = getattr(arguments, option)
            passed += [f"--{option}", value] if value else []
        found = environments.lines_of(environment, Path(__file__), passed)
        script.keep(arguments, found)
        lines += found
    script.say(arguments, fastest=overall(lines), fastest_by_row=fastest(lines), rows=rows(lines))


if __name__ == "__main__":
    main()
