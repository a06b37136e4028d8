"""Activation generation: a mean-difference vector at every layer, by steerfast and by what one would use instead.

one text     one text at a time, output_hidden_states, last token: the usual loop
batched      the same in padded batches of 16
steerfast    extract_pairs
libraries    those that extract from pairs (peers/extracting.py), each in its environment, in batches of 16 where they can

Two kinds of pairs: questions with two answers of one token (the paper's), and sentences that differ from early on. All
in float32 on the same model; every vector is compared with one from activations in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import script
from harness.machine import setting
from harness.spreads import ratio_of, summary
from harness.timing import single_calls
from peers.environments import hand_back, inside_options, lines_of
from peers.exact import in_float64
from peers.extracting import BATCH, LIBRARIES, Vectors
from steerfast import contrast
from steerfast.experiments import questions
from steerfast.extraction.contrast import ContrastPair
from steerfast.extraction.extract import extract_pairs
from steerfast.models.load import load_model

SEED = 0
ENVIRONMENTS = ("main", "apart")


def pairs_of(kind: str, count: int) -> list[ContrastPair]:
    if kind == "questions":
        return [one.pair for one in questions.load(None, "myopic")[:count]]
    return list(contrast.load("sentiment").train)[:count]


@torch.no_grad()
def one_text(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    total: Tensor | float = 0.0
    for pair in pairs:
        for sign, tail in ((1, pair.positive), (-1, pair.negative)):
            ids = torch.tensor([tokenizer(pair.prompt + tail)["input_ids"]])
            states = model(ids, output_hidden_states=True).hidden_states
            total = total + sign * torch.stack(_outputs(states))[:, 0, -1]
    assert isinstance(total, Tensor)
    return dict(enumerate(total / len(pairs)))


@torch.no_grad()
def batched(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    texts = [pair.prompt + tail for pair in pairs for tail in (pair.positive, pair.negative)]
    signs = torch.tensor([1.0, -1.0] * len(pairs))
    total: Tensor | float = 0.0
    for at in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[at : at + BATCH], return_tensors="pt", padding=True)
        last = inputs["attention_mask"].sum(-1) - 1
        states = model(**inputs, output_hidden_states=True).hidden_states
        kept = torch.stack(_outputs(states))[:, torch.arange(len(last)), last]
        total = total + (signs[at : at + BATCH, None] * kept).sum(1)
    assert isinstance(total, Tensor)
    return dict(enumerate(total / len(pairs)))


def _outputs(states: Sequence[Tensor]) -> list[Tensor]:
    """The streams of transformers' hidden states; its last one is behind the final norm, and left out."""
    return list(states[1:-1])


def steerfast(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    return dict(extract_pairs(model, tokenizer, pairs, name="v", batch_size=BATCH).directions)


@torch.no_grad()
def truth(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> Vectors:
    """One text at a time in float64, by hooks on the layers."""
    wide = in_float64(model)
    streams: list[Tensor] = []
    for layer in wide.model.layers:
        layer.register_forward_hook(lambda module, args, output: streams.append(output[0, -1]))
    total: Tensor | float = 0.0
    for pair in pairs:
        for sign, tail in ((1, pair.positive), (-1, pair.negative)):
            streams.clear()
            wide(torch.tensor([tokenizer(pair.prompt + tail)["input_ids"]]))
            total = total + sign * torch.stack(streams)
    assert isinstance(total, Tensor)
    return dict(enumerate(total / len(pairs)))


def error(found: Vectors, wanted: Vectors) -> float:
    """Greatest |found - wanted| / |wanted| over the layers that were found."""
    return max(
        float((vector.double() - wanted[layer]).norm() / wanted[layer].norm())
        for layer, vector in found.items()
    )


def cosine(found: Vectors, wanted: Vectors) -> float:
    """Least |cosine| over the layers: for methods that give a direction but not the mean difference."""
    return min(
        abs(float(torch.cosine_similarity(vector.double(), wanted[layer], dim=0)))
        for layer, vector in found.items()
    )


def measured(
    environment: str, loaded: Any, kind: str, count: int, rounds: int
) -> list[dict[str, Any]]:
    """Result lines of one environment's versions on one kind of pairs."""
    model, tokenizer, name = loaded
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    pairs = pairs_of(kind, count)
    methods: dict[str, Callable[..., Vectors]] = {"steerfast": steerfast}
    if environment in ("main", "none"):
        methods |= {"one text": one_text, "batched": batched}
    methods |= {
        name: library.extract
        for name, library in LIBRARIES.items()
        if library.environment == environment
    }
    wanted = truth(model, tokenizer, pairs)
    found = {method: extract(model, tokenizer, pairs) for method, extract in methods.items()}
    versions: dict[str, Callable[[], object]] = {
        method: (lambda extract=extract: extract(model, tokenizer, pairs))
        for method, extract in methods.items()
    }
    versions["steerfast again"] = versions["steerfast"]
    times = single_calls(versions, rounds)
    lines = []
    for method in methods:
        library = LIBRARIES.get(method)
        lines.append(
            {
                "bench": "extract",
                "model": name,
                "dtype": "float32",
                "environment": environment,
                "pairs": kind,
                "count": count,
                "method": method,
                "gives": "mean difference" if library is None else library.gives,
                "error": error(found[method], wanted),
                "cosine": cosine(found[method], wanted),
                "layers": len(found[method]),
                "seconds": {key: us / 1e6 for key, us in summary(times[method]).items()},
                "over_steerfast": ratio_of(times[method], times["steerfast"]),
                "a_over_a": ratio_of(times["steerfast again"], times["steerfast"]),
                "rounds": rounds,
                **setting(SEED),
            }
        )
        line = lines[-1]
        print(
            f"{kind:>10} {method:>18}: {line['seconds']['median']:.2f} s, {line['over_steerfast']['ratio']:.2f}x "
            f"steerfast's; error {line['error']:.1e}, cosine {line['cosine']:.4f}",
            file=sys.stderr,
        )
    return lines


def main(given: Sequence[str] | None = None) -> None:
    quick = "2 pairs, 3 rounds, questions only, no libraries"
    parser = inside_options(script.parser(__doc__, "extract", quick=quick))
    parser.add_argument("--model", help="default SmolLM2-135M-Instruct")
    parser.add_argument("--count", type=int, default=8, help="pairs of each kind")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true", help="without the libraries")
    arguments = parser.parse_args(given)
    only_questions = arguments.quick or arguments.inside == "apart"
    kinds = ["questions"] if only_questions else ["questions", "sentences"]
    count, rounds = (2, 3) if arguments.quick else (arguments.count, arguments.rounds)
    lines = []
    if arguments.inside or arguments.no_peers or arguments.quick:
        loaded = load_model(arguments.model, dtype=torch.float32)
        for kind in kinds:
            lines += measured(arguments.inside or "none", loaded, kind, count, rounds)
    else:
        passed = ["--count", str(count), "--rounds", str(rounds)]
        passed += ["--model", arguments.model] if arguments.model else []
        for environment in ENVIRONMENTS:
            lines += lines_of(environment, Path(__file__), passed)
    if arguments.inside:
        hand_back(arguments, lines)
        return
    script.keep(arguments, lines)
    over = {f"{line['pairs']}, {line['method']}": line["over_steerfast"]["ratio"] for line in lines}
    worst = max(line["error"] for line in lines if line["method"] == "steerfast")
    script.say(arguments, over_steerfast=over, error=worst)


if __name__ == "__main__":
    main()
