"""What the cost of steering depends on, and on what it does not: one quantity varied at a time, a line fitted through each.

op      microseconds of ``steer_add_rms_norm`` against N rows, D, K constant vectors, K reads, distinct plans
step    microseconds of a decode step of a patched model against layers steered, and against depth. The model has
        Llama-2-7B's width and next to nothing else (heads and MLP of 8), so that the stream is what costs

All points of a series are measured in turn. From the op's series follows a model of its cost,

    t(N, D) = call + row N + byte (4 N D s)

fitted with D <= 4096 and tried on the widths of Llama-2-13B and 70B, and from it what steering costs in a decode step
of those, next to reading their weights (a floor for the step), on one device and on eight in tensor parallel: there
every rank keeps the whole stream, so the op costs each what it costs one, while its share of the weights is an eighth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import bench_roofline
import gpu.timing
from harness import op_forms, script
from harness.decode_runners import Runner
from harness.shapes import random_model
from harness.spreads import ratio_of, summary
from harness.timing import in_turn, single_calls
from steerfast import Plan, SteeringVector, Term, ops
from tables import cost_model

SEED = 0
EPS = 1e-5
WIDTH, BATCH = 4096, 64
DTYPE = torch.bfloat16
ROWS = (1, 4, 16, 64, 256, 1024)
WIDTHS = (576, 1024, 2048, 3072, 4096, 5120, 8192)
COUNTS = (1, 2, 4, 8, 16)
PLANS = (1, 4, 16, 64, 256)
DEPTHS = (4, 8, 16, 32)
STEERED = (0, 4, 8, 12, 16)
STEPS = 120


def reading_plan(width: int, reads: int) -> Plan:
    """Clamps, one dot product each."""
    terms = [
        Term(op_forms.vector(width, k), operator="clamp", target=1.0 + k) for k in range(reads)
    ]
    return Plan(tuple(terms))


def additive(width: int, device: str, count: int = 1, slots: int = 1) -> tuple[Plan, ...]:
    """A plan of so many constant vectors for each slot."""
    return op_forms.additive(width, DTYPE, device, count=count, slots=slots).plans


def op(
    width: int, rows: int, plans: tuple[Plan, ...], device: str, steered: bool = True
) -> Callable[[], object]:
    """The fused op on random rows, dealt out to the plans in turn."""
    x, residual, weight = op_forms.operands(width, rows, DTYPE, device, SEED)
    slots = torch.arange(rows) % len(plans) if steered else torch.full((rows,), -1)
    steering = op_forms.steering(plans, width, slots, device)
    return lambda: ops.steer_add_rms_norm(x, residual, weight, EPS, steering)


def op_series(quick: bool, device: str) -> dict[str, dict[int, Callable[[], object]]]:
    """{quantity: {value: what to time}}."""
    one, many = additive(WIDTH, device), additive(WIDTH, device, slots=max(PLANS))
    found: dict[str, dict[int, Callable[[], object]]] = {
        "rows N": {n: op(WIDTH, n, one, device) for n in ROWS},
        "rows N, unsteered": {n: op(WIDTH, n, one, device, steered=False) for n in ROWS},
        "hidden size D": {d: op(d, BATCH, additive(d, device), device) for d in WIDTHS},
        "hidden size D, unsteered": {
            d: op(d, BATCH, additive(d, device), device, steered=False) for d in WIDTHS
        },
        "constant vectors K": {
            k: op(WIDTH, BATCH, additive(WIDTH, device, k), device) for k in COUNTS
        },
        "reads": {k: op(WIDTH, BATCH, (reading_plan(WIDTH, k),), device) for k in COUNTS},
        "distinct plans": {p: op(WIDTH, max(PLANS), many[:p], device) for p in PLANS},
    }
    return {name: found[name] for name in ("rows N", "constant vectors K")} if quick else found


def runner(model: Any, steered: int | None) -> Runner:
    """Decoding of one row: stock (None), or patched and steered at the first so many layers."""
    prompt = torch.zeros(1, 8, dtype=torch.int64, device=model.device)
    if steered is None:
        return Runner(model, prompt, "eager")
    directions = {layer: 0.01 * torch.ones(WIDTH) for layer in range(steered)}
    plan = Plan((Term(SteeringVector("ones", directions), 1.0),)) if steered else None
    return Runner(model, prompt, "eager", plans=[plan], attached=True)


@torch.inference_mode()
def step_series(quick: bool) -> dict[str, dict[str, list[float]]]:
    """{quantity: {value: microseconds of each step}}, all points of a quantity in turn."""
    whole = random_model("thin", DTYPE, max(STEERED))
    kinds: dict[str, dict[str, Runner]] = {
        "layers steered": {str(count): runner(whole, count) for count in STEERED}
    }
    kinds["layers steered"]["0 again"] = runner(whole, 0)
    if not quick:
        models = {depth: random_model("thin", DTYPE, depth) for depth in DEPTHS}
        deepest = max(DEPTHS)
        kinds["depth"] = {str(depth): runner(model, depth) for depth, model in models.items()}
        kinds["depth"][f"{deepest} again"] = runner(models[deepest], deepest)
        for name, steered in (("depth, unsteered", 0), ("depth, stock", None)):
            kinds[name] = {str(depth): runner(model, steered) for depth, model in models.items()}
    token = torch.zeros(1, 1, dtype=torch.int64, device=whole.device)
    versions = {
        (quantity, value): (lambda one=one: one.step(token))
        for quantity, points in kinds.items()
        for value, one in points.items()
    }
    times = single_calls(versions, STEPS // (2 if quick else 1))
    for points in kinds.values():
        for one in points.values():
            one.close()
    return {
        quantity: {value: times[quantity, value] for value in points}
        for quantity, points in kinds.items()
    }


def series_line(bench: str, quantity: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """The result line of one series: its points, the line through them, and its A/A control."""
    again = next((name for name in times if name.endswith(" again")), None)
    points = {name: series for name, series in times.items() if name != again}
    line = {
        "bench": bench,
        "quantity": quantity,
        "us": {name: summary(series) for name, series in points.items()},
        "fit": cost_model.fit_line({float(name): series for name, series in points.items()}),
    }
    if again is not None:
        line["a_over_a"] = ratio_of(times[again], times[again.removesuffix(" again")])
    fit = line["fit"]
    print(
        f"{quantity:>26}: {fit['at_zero']:.2f} us + {fit['slope']['median']:.4g} us each "
        f"[{fit['slope']['p20']:.4g}, {fit['slope']['p80']:.4g}], R2 {fit['r2']:.3f}",
        file=sys.stderr,
    )
    return line


def op_lines(
    quick: bool, device: str, found: dict[str, dict[str, list[float]]]
) -> Iterator[dict[str, Any]]:
    """Result lines of the op's series, whose times go to ``found``."""
    for quantity, points in op_series(quick, device).items():
        versions = {str(value): function for value, function in points.items()}
        last = next(reversed(versions))
        versions[f"{last} again"] = versions[last]
        with torch.inference_mode():
            if device == "cuda":
                times = gpu.timing.in_turn({name: [one] for name, one in versions.items()})
            else:
                times = in_turn(versions, rounds=9, round_seconds=0.03)
        found[quantity] = times
        yield series_line("scale op", quantity, times)


def lines_of(quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """All result lines, as they are measured."""
    times: dict[str, dict[str, list[float]]] = {}
    yield from op_lines(quick, device, times)
    for quantity, points in step_series(quick).items():
        yield series_line("scale step", quantity, points)
    if not quick:
        memory = bench_roofline.memory_bandwidth()
        yield cost_model.line(times, (BATCH, WIDTH), DTYPE.itemsize, memory)


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "scale", quick="rows, vectors, layers steered")
    arguments = parser.parse_args(given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = script.kept(arguments, lines_of(arguments.quick, device), SEED)
    fits = {line["quantity"]: line["fit"] for line in lines if "fit" in line}
    script.say(arguments, fits=fits)


if __name__ == "__main__":
    main()
