"""The CUDA ops on tensors of exactly the size they need, for tools that watch every access; nothing is compared.

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an allocation of its own, so that one element too far is out of bounds.
``--timed``: a single row and 16384 of them, for a profiler.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from gpu import stand_in
from harness import op_forms

WIDTHS = (
    4096,
    576,
    16384,
    33,
    8192,
)  # in registers, in shared memory, by rereading, in registers twice
ROWS = (5, 1, 300)
KINDS = (torch.bfloat16, torch.float32, torch.float16)
EPS = 1e-5
TEARDOWN = 3.0  # seconds that a tool takes to say what it has found


def call(library: object, form: str, dtype: torch.dtype, width: int, rows: int) -> None:
    """Every op once, steered rows and others."""
    ops, device = library, stand_in.DEVICE
    x, residual, weight = op_forms.operands(width, rows, dtype, device)
    slots = torch.arange(rows) % 2 - int(rows > 1)
    steering = op_forms.shared_steering(form, width, slots, device)
    ops.steer_add_rms_norm(x, residual, weight, EPS, steering)  # type: ignore[attr-defined]
    ops.steer_add(x, residual, steering)  # type: ignore[attr-defined]
    ops.steer_rms_norm(x, weight, EPS, steering)  # type: ignore[attr-defined]
    ops.steer(x, steering)  # type: ignore[attr-defined]
    ops.steer_add_rms_norm_(x, residual, weight, EPS, steering)  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", action="store_true", help="small and soon over")
    parser.add_argument("--timed", action="store_true", help="few large calls, for a profiler")
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to stop")
    arguments = parser.parse_args()
    end = stand_in.end_of(arguments.seconds) - TEARDOWN
    library = stand_in.cuda_library()
    cases = list(itertools.product(ROWS, KINDS, WIDTHS, ("additive", "mixed")))
    if arguments.timed:
        cases = [(rows, torch.bfloat16, 4096, form) for form in ("additive", "mixed") for rows in (16384, 1)]  # fmt: skip
    if arguments.few:
        cases = [(rows, dtype, 64, form) for rows, dtype, _, form in cases[:2]]
    done = 0
    with torch.inference_mode():
        for rows, dtype, width, form in cases:
            call(library, form, dtype, width, min(rows, 5) if arguments.few else rows)
            stand_in.synchronize()
            done += 1
            print(f"so far: {done} of {len(cases)} cases called", flush=True)
            if time.time() > end:
                print(f"so far: {done} of {len(cases)} cases called, then time was up", flush=True)
                break


if __name__ == "__main__":
    main()
