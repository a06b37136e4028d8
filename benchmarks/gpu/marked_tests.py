"""The tests marked ``gpu``, of the files that have any: collecting all of them takes longer than running these.

But for those of Triton, which are one kernel to compile after the other: ``gpu.conformance`` has them compiled side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
NOTHING = 5  # pytest's exit status where no test was chosen
ELSEWHERE = ("vllm",)  # folders that need an environment of their own


def files() -> list[Path]:
    """Test files that speak of the mark, but for those that need what is not here."""
    found = (path for path in sorted(TESTS.rglob("test_*.py")) if path.parent.name not in ELSEWHERE)
    return [path for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]


def main() -> None:
    chosen = files()
    if not chosen:
        print("so far: 0 passed, no test is marked gpu")
        return
    options = ["-m", "gpu", "-k", "not triton", "-v", "-p", "no:cacheprovider", *sys.argv[1:]]
    command = [sys.executable, "-m", "pytest", *options, *map(str, chosen)]
    done = subprocess.run(command, env={**os.environ, "STEERFAST_DRY_RUN": "0"})
    sys.exit(0 if done.returncode == NOTHING else done.returncode)


if __name__ == "__main__":
    main()
