"""What a run of ``gpu_check.sh`` brought back, merged into ``results/``."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

from harness import results
from harness.results import Line

ARCHIVE, RECORD = "gpu.tgz", "outcomes.json"
CHECK = "gpu_check"  # the file of runs as a whole: the setting, and how each stage ended


def merge(out: Path) -> dict[str, int]:
    """{file of results: how many lines were new}, from the archive in the folder ``out``; a second time there is nothing new.

    ValueError where the archive is of a dry run, or holds lines that are not of a GPU or of no known commit: they would stand
    in the tables beside those that are.
    """
    path = out if out.is_file() else out / ARCHIVE
    if not path.exists():
        raise ValueError(
            f"there is no {ARCHIVE} in {out}; give the folder that gpu_check.sh wrote to"
        )
    record, found = _read(path)
    if record["dry"]:
        raise ValueError(f"{path} is of a dry run: its figures say nothing")
    for name, lines in found.items():
        for line in lines:
            if not results.on_gpu(line):
                raise ValueError(f"{path}: {name} has a line of {line['device']}, which is no GPU")
            if line["commit"] in ("", "unknown"):
                raise ValueError(
                    f"{path}: {name} has a line of no known commit; set STEERFAST_COMMIT where the sources have no history"
                )
    for line in found.get(CHECK, [])[-1:]:
        line["outcomes"] = record["outcomes"]
    added = {}
    for name, lines in found.items():
        known = {json.dumps(line, sort_keys=True) for line in results.every(name)}
        new = [line for line in lines if json.dumps(line, sort_keys=True) not in known]
        results.save(name, new)
        added[name] = len(new)
    return added


def _read(path: Path) -> tuple[dict[str, Any], dict[str, list[Line]]]:
    """How stages ended, and the result lines of each file. A line that was being written when all ended is left out."""
    found: dict[str, list[Line]] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            name = re.fullmatch(r"results/(\w+)\.jsonl", member.name)
            if name and member.isfile():
                text = _text(archive, member.name)
                whole = text[: text.rfind("\n") + 1]
                found[name[1]] = [json.loads(line) for line in whole.splitlines()]
        return json.loads(_text(archive, RECORD)), found


def _text(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is no file"
    return file.read().decode()
