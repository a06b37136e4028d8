"""What ``gpu_check.sh`` does, most valuable first. A stage is a command, its own limit of time, and what its log is read for.

The limits together may be more than the deadline: what is at the end is what can be missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SO_FAR = r"^so far: (.*)$"  # how our programs say how far they came, again and again
PYTEST = r"(\d+ (?:passed|failed|skipped|error|deselected|tests collected)[^=\n]*|\[ *\d+%\])"
SANITIZER = r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (.*)$"


@dataclass(frozen=True)
class Stage:
    """command: behind the interpreter, ``{seconds}`` in it being what there is for it. smaller: what a dry run adds to it.
    tool: a program that the command runs under, with ``options``; a dry run does without. unneeded: a path that makes the stage so.
    background: begun and left, until a stage that is ``after`` it. gate: if it fails, nothing more is done."""

    name: str
    seconds: float
    command: tuple[str, ...]
    smaller: tuple[str, ...] = ()
    said: str = SO_FAR
    tool: str | None = None
    options: tuple[str, ...] = ()
    unneeded: str | None = None
    background: bool = False
    after: tuple[str, ...] = ()
    gate: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def command_line(self, python: str, seconds: float, tool: str | None, dry: bool) -> list[str]:
        words = [*self.command, *(self.smaller if dry else ())]
        filled = [word.replace("{seconds}", f"{max(seconds, 1.0):.0f}") for word in words]
        under = [tool, *self.options] if tool is not None else []
        return [*under, python, *filled]


def _decode(*more: str) -> tuple[str, ...]:
    return ("benchmarks/bench_decode.py", "--shape", "llama-2-7b", "--dtype", "bfloat16", "--save", *more)  # fmt: skip


TINY = ("--shape", "tiny", "--dtype", "float32", "--batch", "2", "--vectors", "2", "--steps", "7")
# Found by what they are called: what torch runs besides is not ours to check.
OURS = ("--kernel-regex", "kns=rows_")
ONE_BY_ONE = {
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"
}  # else all lies in blocks of 2 MB, and nothing is out of bounds

STAGES = (
    Stage("build", 170, ("setup.py", "build_ext", "--inplace"), said=r"^(steerfast: building .*)$",
          unneeded="steerfast/lib/libsteerfast_cuda.so", gate=True,
          environment={"STEERFAST_BUILD": "cuda", "STEERFAST_CUDA_ARCHS": "90"}),
    Stage("smoke", 60, ("-m", "gpu.smoke"), gate=True),
    Stage("triton-compile", 90, ("-m", "gpu.triton_ahead"), ("--few",), background=True),
    Stage("conformance-cuda", 75, ("-m", "gpu.conformance", "--backend", "cuda", "--seconds", "{seconds}"),
          ("--few",)),
    Stage("ops", 75, ("-m", "gpu.op_speed", "--save", "--seconds", "{seconds}"), ("--few",), after=("triton-compile",)),
    Stage("decode", 190, _decode("--mode", "graph", "--batch", "1", "64", "256", "16", "--vectors", "8",
          "--steps", "150"), TINY),
    Stage("decode-reads", 30, _decode("--mode", "graph", "--batch", "32", "--vectors", "8", "--operator", "clamp",
          "--steps", "100"), TINY),
    Stage("decode-compiled", 95, _decode("--mode", "compiled-graph", "--layers", "8", "--batch", "1", "64",
          "--vectors", "8", "--steps", "100", "--variants", "stock", "patched", "steered", "patched again"),
          (*TINY, "--layers", "2", "--compiler", "eager")),
    Stage("conformance-triton", 45, ("-m", "gpu.conformance", "--backend", "triton", "--seconds", "{seconds}"),
          ("--few",), after=("triton-compile",)),
    Stage("gpu-tests", 40, ("-m", "gpu.marked_tests"), ("--collect-only",), said=PYTEST),
    Stage("memcheck", 40, ("-m", "gpu.exact_calls", "--seconds", "{seconds}"), ("--few",), said=SANITIZER + "|" + SO_FAR,
          tool="compute-sanitizer", options=("--tool", "memcheck", "--error-exitcode", "9", "--report-api-errors", "no", *OURS),
          environment=ONE_BY_ONE),
    Stage("racecheck", 40, ("-m", "gpu.exact_calls", "--seconds", "{seconds}"), ("--few",), said=SANITIZER + "|" + SO_FAR,
          tool="compute-sanitizer", options=("--tool", "racecheck", "--error-exitcode", "9", "--report-api-errors", "no", *OURS),
          environment=ONE_BY_ONE),
    Stage("counters", 40, ("-m", "gpu.exact_calls", "--timed"), ("--few",), tool="ncu",
          options=("--clock-control", "none", "--kernel-name", "regex:rows_", "--section", "SpeedOfLight", "--section",
                   "Occupancy", "--section", "WarpStateStats")),
)  # fmt: skip
