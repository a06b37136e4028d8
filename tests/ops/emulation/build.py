"""Builds the driver and the program of faults, and keeps what it built in build/emulation."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parents[3]
CSRC = ROOT / "csrc"
EMULATION = Path(__file__).parent
CACHE = ROOT / "build/emulation"
KEPT_FOR = 2 * 24 * 3600.0  # seconds
FLAGS = ["-std=c++17", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=off", "-w"]
SPOILED = "-ftrivial-auto-var-init=pattern"  # a local variable that nobody set: not by chance 0
ENGINE = ("block", "buffer", "fiber", "own_shared", "runtime")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


@cache
def missing() -> str | None:
    """Why nothing can be emulated here, or None."""
    if sys.platform != "linux":
        return "the emulation finds shared memory as Linux keeps thread-local memory"
    if compiler() is None:
        return "there is no C++ compiler (c++, or what CXX names)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("int main() {}\n")
        linked = _run([compiler(), *SANITIZERS, source, "-o", Path(folder, "empty")])
    return None if linked.returncode == 0 else f"{compiler()} cannot link its sanitizers"


def kernel_sources(csrc: Path = CSRC) -> list[Path]:
    """All of the kernels; ops_cuda.cu is where torch comes in."""
    return sorted(source for source in csrc.glob("*.cu") if source.name != "ops_cuda.cu")


def driver(csrc: Path = CSRC) -> Path:
    """The driver with the kernels of ``csrc``."""
    engine = [EMULATION / f"{name}.cpp" for name in ("calls", "main", *ENGINE)]
    return _link([*engine, *kernel_sources(csrc)], csrc)


def faults() -> Path:
    """The program of faults.cu."""
    engine = [EMULATION / f"{name}.cpp" for name in ENGINE]
    return _link([*engine, EMULATION / "faults.cu"], CSRC)


@cache
def _flags() -> list[str]:
    """Of every source; a flag that this compiler does not know is left out."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.touch()
        known = _run([compiler(), SPOILED, "-c", source, "-o", Path(folder, "empty.o")])
    return [*FLAGS, *SANITIZERS, *([SPOILED] if known.returncode == 0 else [])]


def _link(sources: Sequence[Path], csrc: Path) -> Path:
    """One object a source, side by side. A file is named by what went into it, so what did not
    change is found again.

    The kernels are not optimised: that would take the compiler five times as long, and save less.
    """
    flags = _flags()

    def compile_one(source: Path) -> Path:
        ours = source.parent == EMULATION
        command = [compiler(), *flags, "-O1" if ours else "-O0", f"-I{EMULATION}"]
        command += [
            f"-I{CSRC if ours else csrc}",
            *(["-x", "c++"] if source.suffix == ".cu" else []),
        ]
        text = _checked([*command, "-E", source]).replace(f"{csrc}/", "")
        target = _named(source.stem, flags, text).with_suffix(".o")
        return _made(target, [*command, "-c", source])

    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_FOR:
            old.unlink(missing_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    target = _named("driver", flags, *(str(built) for built in objects))
    return _made(target, [compiler(), *flags, *objects])


def _named(stem: str, *content: Any) -> Path:
    key = repr((compiler(), *content))
    return CACHE / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _made(target: Path, command: Sequence[str | Path | None]) -> Path:
    """The file, by the command if need be: whole or not at all, and made by one process while others wait."""
    with FileLock(f"{target}.lock"):
        if target.exists():
            target.touch()
            return target
        unfinished = target.with_name(f"{target.name}.unfinished")
        _checked([*command, "-o", unfinished])
        unfinished.replace(target)
    return target


def _run(command: Sequence[str | Path | None]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def _checked(command: Sequence[str | Path | None]) -> str:
    done = _run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
