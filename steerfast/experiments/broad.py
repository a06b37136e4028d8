"""The paper's first study: a broad skill. Text minus code, steered away from code.

    v_l = mean over texts of s_l[last token]  -  mean over code of s_l[last token]

A positive coefficient steers away from code. Measured: next-token accuracy on text and on code, relative to no
steering. Controls: the entries of both means permuted within each layer before they are subtracted (the paper's; its
norm is another one), and the same brought to the norm of v_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from steerfast.experiments.config import BroadConfig, described
from steerfast.experiments.examples import examples
from steerfast.experiments.measure import Laboratory, Pieces, check_capable
from steerfast.experiments.progress import Stage
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Result, Trials
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

SHARES = (0.9, 0.8, 0.5, 0.2)  # of code's accuracy, at which the table says what is left of text's
JUMP = 5  # grid points ahead, once little is left


@dataclass
class Line:
    """One set of layers, or a control: its vector, and how far along the grid it has come.

    points: (coefficient, accuracy on text, accuracy on code), the unsteered one first.
    """

    name: str
    vector: SteeringVector
    layers: tuple[int, ...]
    next: int = 0
    points: list[tuple[float, Result, Result]] = field(default_factory=list)

    def advance(self, coefficient: float, text: Result, code: Result, config: BroadConfig) -> None:
        """Record a point and go to the next: the one after it, five ahead, or none."""
        kept = code["top1"] / self.points[0][2]["top1"]
        self.points.append((coefficient, text, code))
        if kept < config.stop:
            self.next = len(config.coefficients)
        else:
            self.next += JUMP if kept < config.jump else 1


def run(
    laboratory: Laboratory,
    config: BroadConfig,
    means: dict[str, SteeringVector],
    held_out: dict[str, Pieces],
    trials: Trials,
    stage: Stage,
    spread: Any = None,
) -> dict[str, Any]:
    """The whole study, as plain data. means, held_out: of "text" and "code"."""
    vector = difference(means["text"], means["code"])
    lines = [Line(_named(layers), vector, layers) for layers in config.layers]
    at = (config.control_layer,)
    permuted = permuted_control(means["text"], means["code"], config.seed)
    matched = with_norms_of(vector, permuted)
    lines.append(Line(f"{_named(at)} permuted", permuted, at))
    lines.append(Line(f"{_named(at)} permuted, norm matched", matched, at))

    advance = stage("grid", 1 + len(config.coefficients))
    unsteered = _measure(laboratory, [None], held_out, trials, spread)[0]
    for side, name in zip(unsteered, ("text", "code"), strict=True):
        check_capable(side, name)
    advance()
    for line in lines:
        line.points.append((0.0, *unsteered))
    while alive := [line for line in lines if line.next < len(config.coefficients)]:
        # Layers that have jumped ahead wait for the others, so that every batch has as many plans as there are.
        number = min(line.next for line in alive)
        here = [line for line in alive if line.next == number]
        c = config.coefficients[number]
        plans = [_plan(line, c, config, vector) for line in here]
        measured = _measure(laboratory, plans, held_out, trials, spread)
        for line, (text, code) in zip(here, measured, strict=True):
            line.advance(c, text, code, config)
        advance()
    return {
        "kind": "broad",
        "config": described(config),
        "data": {
            name: {"digest": pieces.digest, "tokens": pieces.tokens}
            for name, pieces in held_out.items()
        },
        "lines": [
            {
                "name": line.name,
                "layers": list(line.layers),
                "points": [
                    {"coefficient": c, "text": text, "code": code} for c, text, code in line.points
                ],
                "text_kept": text_kept(line.points),
            }
            for line in lines
        ],
        "examples": examples(laboratory, config.examples, _shown(lines, config, vector), trials),
        "norms": {
            name: {str(layer): round(float(one.at(layer).norm()), 6) for layer in one.layers}
            for name, one in (("text minus code", vector), ("permuted", permuted))
        },
    }


def _shown(
    lines: Sequence[Line], config: BroadConfig, vector: SteeringVector
) -> dict[str, Plan | None]:
    """Plans of the control's layer without and with the vector, where code's accuracy has fallen to 80 and to 50%."""
    plans: dict[str, Plan | None] = {"unsteered": None}
    line = next((one for one in lines if one.layers == (config.control_layer,)), lines[0])
    for row in text_kept(line.points):
        c = row["coefficient"]
        if row["code"] in (0.8, 0.5) and c is not None:
            plans[f"text minus code {c:+.2f} at layer {line.name}"] = _plan(line, c, config, vector)
    return plans


def difference(text: SteeringVector, code: SteeringVector) -> SteeringVector:
    """Text mean minus code mean, layer by layer; stream norms are those of the texts."""
    return SteeringVector(
        f"{text.name} minus {code.name}",
        {layer: text.at(layer) - code.at(layer) for layer in text.layers},
        text.stream_norms,
        {**text.provenance, "method": "difference of corpus means"},
    )


def permuted_control(text: SteeringVector, code: SteeringVector, seed: int) -> SteeringVector:
    """The paper's control: each mean's entries permuted within its layer, independently, then subtracted."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(values: torch.Tensor) -> torch.Tensor:
        return values[torch.randperm(len(values), generator=generator)]

    directions = {
        layer: shuffled(text.at(layer)) - shuffled(code.at(layer)) for layer in text.layers
    }
    return SteeringVector("permuted control", directions, text.stream_norms)


def with_norms_of(model: SteeringVector, vector: SteeringVector) -> SteeringVector:
    """``vector``, brought to the norms of ``model``: what the paper's control lacks."""
    directions = {}
    for layer in vector.layers:
        direction = vector.at(layer).double()
        wanted = torch.linalg.vector_norm(model.at(layer).double())
        directions[layer] = (direction * (wanted / torch.linalg.vector_norm(direction))).float()
    return SteeringVector(f"{vector.name}, norm matched", directions, model.stream_norms)


def text_kept(points: Sequence[tuple[float, Result, Result]]) -> list[dict[str, float | None]]:
    """Of each of ``SHARES``: the coefficient at which code's relative accuracy first falls to it, and text's relative accuracy
    there, linear between grid points; None where it never does."""
    _, text0, code0 = points[0]
    curve = [
        (c, text["top1"] / text0["top1"], code["top1"] / code0["top1"]) for c, text, code in points
    ]
    rows: list[dict[str, float | None]] = []
    for share in SHARES:
        row: dict[str, float | None] = {"code": share, "text": None, "coefficient": None}
        for (c0, t0, k0), (c1, t1, k1) in pairwise(curve):
            if k0 > share >= k1:
                part = (k0 - share) / (k0 - k1)
                row["text"] = round(t0 + part * (t1 - t0), 6)
                row["coefficient"] = round(c0 + part * (c1 - c0), 6)
                break
        rows.append(row)
    return rows


def _plan(line: Line, c: float, config: BroadConfig, vector: SteeringVector) -> Plan:
    scale = config.scale
    if scale == "stream" and line.vector.name == "permuted control":
        # In units of the stream all directions have one length; this control is to keep its own, relative to v.
        (layer,) = line.layers
        c = c * float(line.vector.at(layer).norm() / vector.at(layer).norm())
    return individual(line.vector, line.layers, c, scale=scale)


def _measure(
    laboratory: Laboratory,
    plans: Sequence[Plan | None],
    held_out: dict[str, Pieces],
    trials: Trials,
    spread: Any,
) -> list[tuple[Result, Result]]:
    jobs = [laboratory.accuracy(plans, held_out[name]) for name in ("text", "code")]
    text, code = trials.complete(jobs, spread=spread)
    return list(zip(text, code, strict=True))


def _named(layers: Sequence[int]) -> str:
    return "+".join(map(str, layers))
