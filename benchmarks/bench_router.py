"""Host time of a serving step: from the names and positions of 256 requests to the buffer that is copied to the device.

Each request has a plan of its own on 32 layers. ``route`` is all of it; ``fill`` is the router alone (C++), ``python`` the
same in plain Python. The bar is 50 us for ``route`` of 256.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness import script
from harness.machine import setting
from harness.spreads import spread
from harness.timing import interleave
from steerfast import Schedule, SteeringVector, steer
from steerfast.routing.itinerary import itinerary
from steerfast.routing.packed import PackedRequests
from steerfast.routing.router import LINES, PythonRouter, make_router
from steerfast.routing.routing import Routing
from steerfast.table.table import Table

SEED, LAYERS, HIDDEN = 0, 32, 64


def measured(requests: int, rounds: int) -> dict[str, Any]:
    """The result line of one number of requests, every one decoding one token."""
    table = Table(LAYERS, HIDDEN, slots=2 * requests)
    routing = Routing(table)
    packed = PackedRequests(routing)
    generator = torch.Generator().manual_seed(SEED)
    vector = SteeringVector(
        "v", {layer: torch.randn(HIDDEN, generator=generator) for layer in range(LAYERS)}
    )
    names = [f"request {number}" for number in range(requests)]
    for number, name in enumerate(names):
        fading = Schedule.ramp(0, 50 + number, 1.0, 0.0)
        plan = steer(vector, 1 + number / 7, select="after_prompt", schedule=fading)
        packed.admit(name, plan, range(5 + number % 9))
    first = [20 + number for number in range(requests)]
    count = [1] * requests
    packed.route(names, first, count, requests)  # everybody gets a seat

    seats, starts, ones = np.arange(requests), np.array(first), np.ones(requests, dtype=np.int64)
    router, python = make_router(requests), PythonRouter(requests)
    for seat, entry in enumerate(table.entries):
        one = [list(part) for part in itinerary(entry, 5 + seat % 9)]
        router.set(seat, *one)
        python.set(seat, *one)
    lines = np.zeros((len(LINES), requests), dtype=np.int32)
    versions = {
        "route": lambda: packed.route(names, first, count, requests),
        "route again": lambda: packed.route(names, first, count, requests),
        "fill": lambda: router.fill(seats, starts, ones, lines),
        "python": lambda: python.fill(seats, starts, ones, lines),
    }
    us = interleave(versions, rounds=rounds)
    return {
        "bench": "router",
        "requests": requests,
        "plans": requests,
        "layers": LAYERS,
        "us": us,
        "a_over_a": us["route again"]["median"] / us["route"]["median"],
        **setting(SEED),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = script.parser(__doc__, "router", quick="256 requests, fewer rounds")
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.requests = arguments.requests[-1:]
    lines = [measured(number, 5 if arguments.quick else 9) for number in arguments.requests]
    for line in lines:
        cells = ", ".join(f"{name} {spread(us)}" for name, us in line["us"].items())
        print(f"{line['requests']:>4} requests, us: {cells}", file=sys.stderr)
    last = lines[-1]
    script.keep(arguments, lines)
    script.say(arguments, us=last["us"], requests=last["requests"])


if __name__ == "__main__":
    main()
