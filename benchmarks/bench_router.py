"""Host time of a serving step: from the names and positions of 256 requests to the buffer that is copied to the device.

Each request has a plan of its own on 32 layers. ``route`` is all of it; ``fill`` is the router alone (C++), ``python`` the
same in plain Python. The bar is 50 us for ``route`` of 256.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import harness
import numpy as np
import torch

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
    us = harness.interleave(versions, rounds=rounds)
    return {
        "bench": "router",
        "requests": requests,
        "plans": requests,
        "layers": LAYERS,
        "us": us,
        "a_over_a": us["route again"]["median"] / us["route"]["median"],
        **harness.setting(SEED),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--quick", action="store_true", help="256 requests, fewer rounds")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--save", action="store_true", help="append to results/router.jsonl")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests = arguments.requests[-1:]
    lines = [measured(number, 5 if arguments.quick else 9) for number in arguments.requests]
    for line in lines:
        cells = (
            f"{n} {t['median']:.1f} [{t['p20']:.1f}, {t['p80']:.1f}]" for n, t in line["us"].items()
        )
        print(f"{line['requests']:>4} requests, us: {', '.join(cells)}", file=sys.stderr)
    if arguments.save:
        harness.save("router", lines)
    if arguments.json:
        last = lines[-1]
        print(
            json.dumps({"us": last["us"], "requests": last["requests"], "device": last["device"]})
        )


if __name__ == "__main__":
    main()
