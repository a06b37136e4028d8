"""README's table of backends: what of each was tried where, and whether its speed is known."""

from __future__ import annotations

from harness.results import Line
from tables.gpu_runs import last_run, said_of
from tables.markdown import grid

HEAD = ("backend", "tested here", "speed measured")
WHERE = "docs/benchmarks.md#on-a-gpu"
NOT_YET = "not yet run on a GPU"


def backends() -> str:
    run = last_run()
    rows = [
        ("reference: plain torch, any device", "yes", "not its aim"),
        ("cpu: C++, AVX-512, AVX2 or neither", "yes", "yes"),
        ("triton", "interpreted; compiled" + _cases(run, "conformance-triton"), _speed(run, "ops")),
        ("cuda", "emulated; compiled for sm_80, 90, 100" + _cases(run, "conformance-cuda"), _speed(run, "decode")),
    ]  # fmt: skip
    return grid(HEAD, rows)


def _cases(run: Line | None, stage: str) -> str:
    """How many cases passed on the GPU, where any ran."""
    said = said_of(run, stage)
    count = said.partition(" passed")[0]
    return f"; {count} on a GPU" if " passed" in said else ""


def _speed(run: Line | None, stage: str) -> str:
    if run is None or "result line" not in said_of(run, stage):
        return NOT_YET
    return f"[{run['device']}]({WHERE})"
