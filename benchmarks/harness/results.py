"""``results/*.jsonl``: appended to, never changed, read for what was measured last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).parents[1] / "results"
RESULTS = Path(os.environ.get("STEERFAST_RESULTS", COMMITTED))  # where a run may have to leave them
Line = dict[str, Any]


def every(name: str) -> list[Line]:
    """All lines of ``results/<name>.jsonl``, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def on_gpu(line: Line) -> bool:
    return "cuda" in line["versions"]


def newest(name: str, *keys: str, gpu: bool = False) -> list[Line]:
    """The lines of the newest commit in a file, of each processor, or of each GPU; of lines with equal ``keys`` the last.

    A table thus holds what one version of the code gave, and nothing that has not been measured since.
    """
    lines = [line for line in every(name) if on_gpu(line) == gpu]
    commits = {line["device"]: line["commit"] for line in lines}
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        if line["commit"] == commits[line["device"]]:
            found[(line["device"], *(line.get(key) for key in keys))] = line
    return list(found.values())


def save(name: str, lines: list[Line]) -> Path:
    """Append result lines to ``results/<name>.jsonl``."""
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line) + "\n")
    return path
