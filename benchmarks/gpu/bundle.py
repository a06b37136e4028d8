"""A folder that runs ``gpu_check.sh`` on a machine that has torch and a GPU, and neither network nor history: ``make gpu-bundle``.

The sources that a run needs, the libraries built by the Python that runs this (as that machine's: its version and its torch), and
the commit. To be taken along whole; there: ``bash gpu-bundle/benchmarks/gpu_check.sh DEADLINE OUT``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TAKEN = ("benchmarks", "csrc", "kernels", "pyproject.toml", "setup.py", "steerfast", "tests")
LEFT = (
    "benchmarks/results",
    "benchmarks/peers/requirements",
    "tests/vllm",
    "tests/docs",
    "steerfast/data/questions",
)
MOST = 30 << 20  # bytes
ARCHS = "90"
BUILT = (
    "steerfast/lib/libsteerfast_cpu.so",
    "steerfast/lib/libsteerfast_cuda.so",
    "steerfast/_C.*.so",
)


def lay_out(target: Path, commit: str) -> None:
    """The sources as they are in the working tree, those that git knows; links as what they point to."""
    shutil.rmtree(target, ignore_errors=True)
    for name in _known():
        if not name.startswith(tuple(f"{folder}/" for folder in LEFT)):
            _copy(ROOT / name, target / name)
    (target / "COMMIT").write_text(f"{commit}\n", encoding="utf-8")


def build(target: Path) -> None:
    """The libraries, in place there. What the compilers make on the way is kept beside the bundle, for the next time."""
    on_the_way = target.with_name(f"{target.name}-objects")
    on_the_way.mkdir(exist_ok=True)
    (target / "build").symlink_to(on_the_way)
    try:
        subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=target,
            env={**os.environ, "STEERFAST_BUILD": "cuda", "STEERFAST_CUDA_ARCHS": ARCHS},
            check=True,
        )
    finally:
        (target / "build").unlink()


def check(target: Path) -> int:
    """Its size in bytes. SystemExit where a library is missing, or where it is too large to travel."""
    for pattern in BUILT:
        if not list(target.glob(pattern)):
            raise SystemExit(f"{target} has no {pattern}: the build made none")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > MOST:
        raise SystemExit(
            f"{target} has {size >> 20} MB; it has to travel, with {MOST >> 20} MB at most"
        )
    return size


def _known() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--", *TAKEN], check=True, capture_output=True, text=True
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def _copy(source: Path, target: Path) -> None:
    """With its time: what is not newer is not built again."""
    if source.is_dir():  # a link to a folder
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def main(given: Sequence[str] | None = None) -> None:
    from harness.machine import commit

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, nargs="?", default=ROOT / "build" / "gpu-bundle")
    target = parser.parse_args(given).target.resolve()
    lay_out(target, commit())
    build(target)
    print(f"{target}: {check(target) / 1e6:.1f} MB, of {(target / 'COMMIT').read_text().strip()}")


if __name__ == "__main__":
    main()
