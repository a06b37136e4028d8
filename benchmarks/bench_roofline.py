"""How near each op comes to what its bytes alone would cost on this machine.

    floor = max(launch, copy)       ratio = op / floor

launch: the same op on no rows at all (on a GPU an empty kernel in a graph): what a call costs before any work. copy:
one plain copy that reads and writes as many bytes as the op must. Both are measured in the same rounds as the op. On a
CPU small copies run in cache, as the op does, so a ratio there compares like with like; ``memory`` is the bandwidth of
a copy too large for any cache. The functional ops also allocate what they return, which the copy does not; the ops that
end in _ write in place.

Bytes that an op must move, with s bytes an element: x, residual, stream and normed are N D s each, where the op has
them; the weight D s; slot and gain 8 N; each direction of the bank that is used 4 D, once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gpu.timing
from harness import op_forms, script
from harness.shapes import DTYPES
from harness.spreads import ratio_of, summary
from harness.timing import Series, in_turn, interleave
from steerfast import ops
from steerfast.ops.reference import Steering

SEED, ROUNDS = 0, 7
EPS = 1e-5
WIDTH = 4096
ROWS = (1, 16, 64, 512, 4096)
GPU_ROWS = (*ROWS, 16384)  # at 4096 much of it is still in a GPU's cache
KINDS = ("bfloat16", "float32")
MEMORY_BYTES = 256 << 20  # a copy of this much is in no cache


class Shape(NamedTuple):
    """An op, how many [N, D] tensors it reads and writes, and whether it reads a norm's weight."""

    op: str
    streams: int
    weight: bool


class Operands(NamedTuple):
    x: Tensor
    residual: Tensor
    weight: Tensor
    steering: Steering


SHAPES = (
    Shape("add_rms_norm", 4, True),
    Shape("steer_add_rms_norm", 4, True),
    Shape("steer_add_rms_norm_", 4, True),
    Shape("steer_add", 3, False),
    Shape("steer_rms_norm", 3, True),
    Shape("steer_", 2, False),
)
FORMS = {"unsteered": "additive", "constant": "additive", "8 reads": "mixed"}


def operands(form: str, dtype: torch.dtype, rows: int, device: str) -> Operands:
    plans = op_forms.FORMS[FORMS[form]](WIDTH, dtype, device).plans
    slots = torch.full((rows,), -1 if form == "unsteered" else 0, dtype=torch.long)
    steering = op_forms.steering(plans, WIDTH, slots, device)
    return Operands(*op_forms.operands(WIDTH, rows, dtype, device, SEED), steering)


def call(op: str, given: Operands) -> Callable[[], object]:
    """The op on these operands. In place the values drift from call to call, which changes no time: a norm
    brings x back to size, and the plan adds little to the stream."""
    x, residual, weight, steering = given
    if op == "add_rms_norm":
        return lambda: ops.add_rms_norm(x, residual, weight, EPS)
    if op == "steer_add_rms_norm":
        return lambda: ops.steer_add_rms_norm(x, residual, weight, EPS, steering)
    if op == "steer_add_rms_norm_":
        return lambda: ops.steer_add_rms_norm_(x, residual, weight, EPS, steering)
    if op == "steer_add":
        return lambda: ops.steer_add(x, residual, steering)
    if op == "steer_rms_norm":
        return lambda: ops.steer_rms_norm(x, weight, EPS, steering)
    assert op == "steer_"
    return lambda: ops.steer_(x, steering)


def directions_read(form: str, steering: Steering) -> int:
    """How many rows of the bank the form's plan uses."""
    return {"unsteered": 0, "constant": 1}.get(form, len(steering.bank))


def bytes_of(shape: Shape, form: str, given: Operands) -> int:
    rows, width = given.x.shape
    size = given.x.element_size()
    steered = 0 if shape.op == "add_rms_norm" else 8 * rows
    directions = 4 * width * directions_read(form, given.steering) if steered else 0
    return shape.streams * rows * width * size + shape.weight * width * size + steered + directions


def series(versions: dict[str, list[Callable[[], object]]], rounds: int, on_gpu: bool) -> Series:
    if on_gpu:
        return gpu.timing.in_turn(versions, rounds=rounds)
    alone = {name: calls[0] for name, calls in versions.items()}
    return in_turn(alone, rounds=rounds, round_seconds=0.03)


def measured(
    shape: Shape, form: str, dtype: str, rows: int, rounds: int, memory: float
) -> dict[str, Any]:
    """The result line of one op on N rows."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    given = operands(form, DTYPES[dtype], rows, device)
    count = bytes_of(shape, form, given)
    sets = min(8, gpu.timing.sets_needed(count)) if on_gpu else 1
    each = [given] + [operands(form, DTYPES[dtype], rows, device) for _ in range(sets - 1)]
    calls = [call(shape.op, one) for one in each]
    nothing = call(shape.op, operands(form, DTYPES[dtype], 0, device))
    launch = [gpu.timing.nothing()] if on_gpu else [nothing]
    versions = {
        "op": calls,
        "op again": calls,
        "copy": gpu.timing.copies(count, device, sets),
        "launch": launch,
    }
    times = series(versions, rounds, on_gpu)
    floors = [max(pair) for pair in zip(times["copy"], times["launch"], strict=True)]
    us = {name: summary(values) for name, values in times.items()}
    line = {
        "bench": "roofline",
        "op": shape.op,
        "form": form,
        "dtype": dtype,
        "D": WIDTH,
        "N": rows,
        "rounds": rounds,
        "bytes": count,
        "us": us,
        "floor": summary(floors),
        "bound": "copy" if us["copy"]["median"] > us["launch"]["median"] else "launch",
        "over_floor": ratio_of(times["op"], floors),
        "a_over_a": ratio_of(times["op again"], times["op"]),
        "bytes_per_second": count / (1e-6 * us["op"]["median"]),
        "memory": memory,
    }
    print(
        f"{shape.op:>18} {form:>9} {dtype} N={rows:<5} {us['op']['median']:9.1f} us, floor "
        f"{line['floor']['median']:9.1f} ({line['bound']}), ratio {line['over_floor']['ratio']:.2f}",
        file=sys.stderr,
    )
    return line


def memory_bandwidth() -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    if torch.cuda.is_available():
        return gpu.timing.copy_bandwidth()
    us = interleave({"copy": gpu.timing.copies(MEMORY_BYTES, "cpu")[0]}, rounds=7)["copy"]
    return MEMORY_BYTES / (1e-6 * us["median"])


def cases(quick: bool) -> list[tuple[Shape, str, str, int]]:
    fused = SHAPES[1]
    if quick:
        return [(fused, form, "bfloat16", n) for form in FORMS for n in (1, 64, 4096)]
    rows = GPU_ROWS if torch.cuda.is_available() else ROWS
    plain = [(SHAPES[0], "unsteered", "bfloat16", n) for n in rows]
    whole = [(fused, form, dtype, n) for dtype in KINDS for form in FORMS for n in rows]
    others = [(shape, "constant", "bfloat16", n) for shape in SHAPES[2:] for n in rows]
    return plain + whole + others


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "roofline", quick="the fused op, bfloat16, three N")
    arguments = parser.parse_args(given)
    with torch.inference_mode():
        memory = memory_bandwidth()
        found = (measured(*case, ROUNDS, memory) for case in cases(arguments.quick))
        lines = script.kept(arguments, found, SEED)
    over = {
        f"{line['op']}, {line['form']}, {line['dtype']}, N{line['N']}": line["over_floor"]
        for line in lines
    }
    script.say(arguments, over_floor=over, memory=memory)


if __name__ == "__main__":
    main()
