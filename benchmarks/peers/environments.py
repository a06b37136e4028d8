"""Virtual environments of the peers, on top of the one that runs this.

An environment sees every package of ours (the same torch, transformers and steerfast, so that all are measured on
one stack) behind its own, which shadow them where a peer pins another version. Packages are installed as pinned
and without their dependencies: some peers ask for a transformers that nobody runs any more, and none may replace torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HOME = FOLDER.parent.parent / ".venv-peers"
NAMES = tuple(sorted(path.stem for path in (FOLDER / "requirements").glob("*.txt")))


def made() -> list[str]:
    """The environments that are there already."""
    return [name for name in NAMES if (HOME / name / "made-from").exists()]


def inside_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The two options by which a script is run in an environment, and by which it answers."""
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--lines", help=argparse.SUPPRESS)
    return parser


def hand_back(arguments: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    """The lines of a script that runs inside, to ``lines_of`` that started it."""
    Path(arguments.lines).write_text(json.dumps(lines))


def lines_of(environment: str, script: Path, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The result lines of ``script --inside ENVIRONMENT --lines FILE``, run in that environment."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        where = ["--inside", environment, "--lines", file.name]
        command = [str(python_of(environment)), str(script), *arguments, *where]
        subprocess.run(command, check=True, stdout=sys.stderr)
        lines: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    return lines


def python_of(name: str) -> Path:
    """The interpreter of environment ``name``, which is made or brought up to date where it is not."""
    pins = FOLDER / "requirements" / f"{name}.txt"
    if not pins.exists():
        raise ValueError(f"no peer environment {name!r}; there are: {', '.join(NAMES)}")
    home = HOME / name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = home / "made-from", hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"making the environment of the peers {name!r} in {home}", file=sys.stderr)
    venv.create(home, clear=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    below = sysconfig.get_path("purelib")
    # addsitedir, not a plain path: an editable steerfast is itself found through a .pth file.
    (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    install = ["install", "-q", "--disable-pip-version-check", "--no-deps", "-r", str(pins)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install],
        check=True,
        stdout=sys.stderr,
    )
    stamp.write_text(wanted)
    return python
