"""The fused op on a GPU, next to a copy of as many bytes and to a kernel that does nothing: device time, in graphs.

unsteered, steered       additive plans, in a table that has room for reads
distinct                 up to 256 plans, rows in runs of 64 where there are enough
8 reads                  a plan that reads the stream
without reads            steered, in a table without room for reads: another kernel
no overlap               steered, each kernel begun when the one before has ended, as behind a matrix product
cold                     steered, over so many operands that each is read from memory; up to 256 rows
triton                   steered, by the Triton kernel
eager                    residual + x, a hook that adds, the norm: what the op replaces

``chain`` lines: the op between reads of other memory that take the table out of the cache, as the weights of a layer do in a
decode step; what steering adds there is the difference of two such series. Each line is saved as it is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gpu import stand_in, timing
from harness import op_forms, script
from harness.op_runners import DISTINCT, EPS, RUN, ResidualAdd
from harness.spreads import ratio_of, summary
from harness.timing import Series
from steerfast import ops
from steerfast.ops.reference import Steering

SEED, ROUNDS = 0, 7
DTYPE = torch.bfloat16
MOST_OPERANDS = 8  # sets that rotate; more of them make ``cold``
COLD_ROWS = 256
SITES = 64  # of a chain: what a model of 32 layers has


class Sizes(NamedTuple):
    """wide: D, at every N of ``rows``. others: D at ``few`` N. nodes: calls of a graph. flush: bytes read between ops."""

    wide: int = 4096
    rows: Sequence[int] = (1, 64, 16384, 256, 4096, 16, 1024)
    others: Sequence[int] = (8192, 2048, 576)
    few: Sequence[int] = (64, 16384)
    nodes: int = timing.LEAST_NODES
    flush: int = 140 << 20
    sites: int = SITES


FEW = Sizes(64, (1, 4), (), (), nodes=2, flush=1 << 12, sites=2)
Calls = list[Callable[[], object]]


class Operands(NamedTuple):
    x: Tensor
    residual: Tensor
    weight: Tensor


def operands(width: int, rows: int, sets: int) -> list[Operands]:
    """Drawn where they will be: a machine lent for minutes has no time for the host to."""
    generator = torch.Generator(stand_in.DEVICE).manual_seed(SEED)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=stand_in.DEVICE).to(DTYPE)

    weight = 1 + drawn(width) / 10
    return [Operands(drawn(rows, width), 3 * drawn(rows, width), weight) for _ in range(sets)]


def steerings(width: int, rows: int) -> dict[str, Steering]:
    first = torch.zeros(rows, dtype=torch.long)
    one = op_forms.shared_steering("additive", width, first, stand_in.DEVICE)
    places = torch.arange(rows) // (RUN if rows > DISTINCT else 1) % DISTINCT
    many = int(places.max()) + 1
    return {
        "unsteered": one._replace(row_slot=torch.full_like(one.row_slot, -1)),
        "steered": one,
        "distinct": op_forms.shared_steering(
            "additive", width, places, stand_in.DEVICE, plans=many
        ),
        "8 reads": op_forms.shared_steering("mixed", width, first, stand_in.DEVICE),
        "without reads": one._replace(reads=one.reads[:0]),
    }


def fused(
    given: Sequence[Operands],
    steering: Steering,
    op: Callable[..., object] = ops.steer_add_rms_norm,
) -> Calls:
    return [
        lambda x=x, r=r, w=w: op(x, r, w, EPS, steering)  # type: ignore[misc]
        for x, r, w in given
    ]


def eager(given: Sequence[Operands], width: int) -> Calls:
    added = op_forms.FORMS["additive"](width, DTYPE, stand_in.DEVICE).eager
    add, norm = ResidualAdd(), LlamaRMSNorm(width, eps=EPS).to(stand_in.DEVICE, DTYPE)
    norm.weight.copy_(given[0].weight)
    add.register_forward_hook(lambda module, args, out: added(out))

    def call(x: Tensor, residual: Tensor) -> object:
        stream = add(x, residual)
        return stream, norm(stream)

    return [lambda x=x, r=r: call(x, r) for x, r, _ in given]  # type: ignore[misc]


def without_overlap(calls: Calls) -> Calls:
    """The same, captured while kernels wait for each other's end."""
    if not hasattr(torch.ops.steerfast, "select_cuda_overlap"):
        return calls

    def alone(call: Callable[[], object]) -> object:
        before = torch.ops.steerfast.select_cuda_overlap(False)
        try:
            return call()
        finally:
            torch.ops.steerfast.select_cuda_overlap(before)

    return [lambda call=call: alone(call) for call in calls]  # type: ignore[misc]


def measured(width: int, rows: int, whole: bool, nodes: int) -> dict[str, Any]:
    """The line of one D and N; ``whole``: with every version."""
    each = (
        4 * rows * width * DTYPE.itemsize
    )  # x, residual, stream and normed: what the op must move
    sets = min(MOST_OPERANDS, timing.sets_needed(each))
    given, steered = operands(width, rows, sets), steerings(width, rows)
    versions = {name: fused(given, steering) for name, steering in steered.items()}
    versions["steered again"] = versions["steered"]
    if whole:
        versions["no overlap"] = without_overlap(versions["steered"])
        versions["eager"] = eager(given, width)
        if not stand_in.DRY:  # whose interpreter does not run in a recorded graph
            triton = stand_in.triton_library().steer_add_rms_norm
            versions["triton"] = fused(given, steered["steered"], triton)
        if rows <= COLD_ROWS:
            wide = operands(width, rows, timing.sets_needed(each))
            versions["cold"] = fused(wide, steered["steered"])
    versions["copy"] = timing.copies(each, stand_in.DEVICE, sets)
    versions["launch"] = [timing.nothing()]
    times = timing.in_turn(versions, rounds=ROUNDS, round_ms=10.0, nodes=nodes)
    return {
        "bench": "gpu ops",
        "dtype": str(DTYPE).removeprefix("torch."),
        "D": width,
        "N": rows,
        "rounds": ROUNDS,
        "bytes": each,
        "operands": timing.where(sets * each),
        "us": {name: summary(series) for name, series in times.items()},
        **ratios(times),
    }


def ratios(times: Series) -> dict[str, Any]:
    """of_copy: a copy's time over each version's; and what is asked of steering, round by round."""
    ours = [name for name in times if name not in ("copy", "launch")]
    found: dict[str, Any] = {
        "of_copy": {name: ratio_of(times["copy"], times[name]) for name in ours}
    }
    found["steered_over_unsteered"] = ratio_of(times["steered"], times["unsteered"])
    found["a_over_a"] = ratio_of(times["steered again"], times["steered"])
    return found


def chain(width: int, rows: int, sizes: Sizes) -> dict[str, Any]:
    """Ops of one layer after the other, the cache filled with something else in between."""
    given, steered = operands(width, rows, 1), steerings(width, rows)
    other = torch.zeros(max(sizes.flush // 4, 1), device=stand_in.DEVICE)
    least = torch.zeros((), device=stand_in.DEVICE)

    def flush() -> object:
        return torch.sum(other, 0, out=least)

    def between(calls: Calls) -> Calls:
        return [lambda call=call: (flush(), call()) for call in calls]  # type: ignore[misc]

    names = ("unsteered", "steered", "distinct", "8 reads", "without reads")
    versions = {name: between(fused(given, steered[name])) for name in names}
    versions["steered again"] = versions["steered"]
    versions["flush"] = [flush]
    times = timing.in_turn(versions, rounds=ROUNDS, round_ms=20.0, nodes=sizes.sites)

    def added(name: str) -> dict[str, float]:
        return summary([a - b for a, b in zip(times[name], times["unsteered"], strict=True)])

    us = {name: summary(series) for name, series in times.items()}
    more = {name: added(name) for name in (*names[1:], "steered again")}
    about = {"bench": "gpu chain", "dtype": "bfloat16", "D": width, "N": rows, "rounds": ROUNDS}
    again = ratio_of(times["steered again"], times["steered"])
    return {**about, "flushed": sizes.flush, "us": us, "added_us": more, "a_over_a": again}


def lines(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Most telling first."""
    for rows in sizes.rows:
        yield measured(sizes.wide, rows, True, sizes.nodes)
        if rows in sizes.rows[:2]:
            yield chain(sizes.wide, rows, sizes)
    for width in sizes.others:
        for rows in sizes.few:
            yield measured(width, rows, False, sizes.nodes)


def within(end: float, found: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """The lines that there is time for, each told."""
    for done, line in enumerate(found, 1):
        times = ", ".join(f"{name} {us['median']:.2f}" for name, us in line["us"].items())
        print(f"{line['bench']} D={line['D']} N={line['N']} us: {times}", file=sys.stderr)
        over = time.time() > end and done < count
        print(f"so far: {done} of {count} lines{', then time was up' if over else ''}", flush=True)
        yield line
        if over:
            break


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "gpu_ops", quick="as --few")
    parser.add_argument("--few", action="store_true", help="sizes that say nothing")
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to stop")
    arguments = parser.parse_args(given)
    end = stand_in.end_of(arguments.seconds) - 5.0  # a line takes seconds
    stand_in.need_a_device()
    if not stand_in.DRY:
        stand_in.cuda_library()  # else the reference would be timed
    sizes = FEW if arguments.few or arguments.quick else Sizes()
    count = len(sizes.rows) + len(sizes.rows[:2]) + len(sizes.others) * len(sizes.few)
    with torch.inference_mode():
        kept = script.kept(arguments, within(end, lines(sizes), count), SEED)
    script.say(arguments, lines=len(kept))


if __name__ == "__main__":
    main()
