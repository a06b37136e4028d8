"""The first stage: whether anything after it would mean something. Versions; every kernel once; captured graphs that are steered.

Ends at the first thing that is wrong, and says which.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from gpu import stand_in
from gpu.conformance import check_case, without_reads
from gpu.graphs import captured
from harness.machine import commit, device_name, setting
from harness.results import save
from harness.shapes import random_model
from steerfast import Plan, SteeringVector, Term, attach
from steerfast.ops import backends
from steerfast.testing import Case, suite

# How a row can be held: (width, with reads).
KERNELS = {
    "rows in registers": (4096, False),
    "rows in registers, with reads": (4096, True),
    "rows in shared memory": (16384, True),
    "rows by rereading": (16390, True),
}
CLOCKS = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"


def versions() -> str:
    """What is here, saved as a line of its own. The GPU's settings are read, and left as they are."""
    names = ("torch", "triton", "transformers", "accelerate", "pytest", "numpy")
    found = [f"python {platform.python_version()}", f"commit {commit()}"]
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    print(device_name(), *found, f"cuda {torch.version.cuda}", sep=", ", flush=True)
    for command in (
        ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"],
        ["/usr/local/cuda/bin/compute-sanitizer", "--version"],
        ["ncu", "--version"],
    ):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            print(command[0], *done.stdout.split("\n")[-3:], done.stderr[-300:], flush=True)
    built = backends.build_info()
    print("built:", built, flush=True)
    save("gpu_check", [{"bench": "gpu check", "built": built, **setting(0)}])
    return f"{device_name()}, commit {commit()}"


def kernels() -> str:
    """Each against the definition in float64, in the dtype that most models have."""
    library = stand_in.cuda_library()
    for name, (width, reads) in KERNELS.items():
        (make,) = itertools.islice(suite.makers([torch.bfloat16], [width], [5]), 1)
        case: Case = make() if reads else without_reads(make())
        check_case(case, library)
        stand_in.synchronize()
        print(f"ok: {name}, D = {width}", flush=True)
    return f"{len(KERNELS)} kernels"


def a_plan(model: Any, size: float) -> Plan:
    width, layers = int(model.config.hidden_size), range(int(model.config.num_hidden_layers))
    direction = torch.linspace(-1.0, 1.0, width)
    return Plan((Term(SteeringVector("line", dict.fromkeys(layers, direction)), size),))


def graphs() -> str:
    """A captured forward is steered by what is in use when it is replayed, whatever was when it was captured."""
    model = random_model("tiny", torch.float32, 2)
    ids = torch.arange(6, device=model.device)[None]
    one, other = a_plan(model, 0.5), a_plan(model, -2.0)

    def forward() -> torch.Tensor:
        return model(ids, use_cache=False).logits  # type: ignore[no-any-return]

    plain = forward().clone()
    with attach(model, slots=8) as handle:
        wanted = {}
        for plan in (one, other):
            with handle.use(plan):
                wanted[plan.digest] = forward().clone()
        away = (wanted[one.digest] - plain).abs().max()
        assert away > 1e-2, (
            f"an eager forward is not steered: it is {float(away):.2g} from the plain one"
        )

        def expect(
            what: str, replay: Callable[[], None], logits: torch.Tensor, goal: torch.Tensor
        ) -> None:
            replay()
            off = float((logits - goal).abs().max())
            assert off < 1e-3, (
                f"{what}: logits are {off:.2g} off (steering moves them by {float(away):.2g})"
            )
            print(f"ok: {what}", flush=True)

        with handle.use(one) as use, handle.generating(ids) as loop:

            def route() -> None:
                loop.step(ids.shape[1], 0)

            graph, logits = captured(forward, before=route)
            expect("captured under a plan", graph.replay, logits, wanted[one.digest])
            use.change(other)
            route()
            expect("after another plan took its place", graph.replay, logits, wanted[other.digest])
        for name, plan in (("idle", None), ("steered", one)):
            with handle.use(plan):
                graph, logits = captured(forward)
            with handle.use(other):
                expect(f"captured {name}, then steered", graph.replay, logits, wanted[other.digest])
            expect(f"captured {name}, then idle", graph.replay, logits, plain)
        graph, logits = captured(forward)
        with handle.use(one):
            expect(
                "captured with no plan in use, then steered",
                graph.replay,
                logits,
                wanted[one.digest],
            )
    return "captured graphs follow the plans in use"


def main() -> None:
    stand_in.need_a_device()
    said: list[str] = []
    with torch.inference_mode():
        for check in (versions, kernels, graphs):
            said.append(check())
            print(f"so far: {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
