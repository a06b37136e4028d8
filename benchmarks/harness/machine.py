"""Where and by what a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import steerfast
from steerfast.ops import backends

ROOT = Path(__file__).parents[2]


def setting(seed: int) -> dict[str, Any]:
    """Commit, device, versions, threads and seed: what a figure means nothing without."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "steerfast": steerfast.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            **({"cuda": torch.version.cuda} if torch.cuda.is_available() else {}),
        },
        "seed": seed,
    }


def commit() -> str:
    """What STEERFAST_COMMIT says, for a copy of the tree that has no history with it; else git; else "unknown"."""
    said = os.environ.get("STEERFAST_COMMIT")
    if said:
        return said
    found = _git("rev-parse", "--short", "HEAD")
    return found + ("-dirty" if _changed() else "") if found else "unknown"


def device_name() -> str:
    """The GPU's name, or the processor's with the kernel's instruction set."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    status = next(s for s in backends.statuses() if s.name == "cpu")
    return f"{name} x{torch.get_num_threads()}, {status.detail}"


def _changed() -> bool:
    """Uncommitted changes, other than results that were just appended and what is made from them."""
    made = (":!benchmarks/results", ":!README.md", ":!docs/benchmarks*")
    return bool(_git("status", "--porcelain", "--", ".", *made))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
