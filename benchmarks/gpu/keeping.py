"""What a run leaves behind: one archive and one summary, whole at any moment, written anew after every stage."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from gpu.boxed import Outcome

ARCHIVE, SUMMARY, RECORD = "gpu.tgz", "summary.md", "outcomes.json"
KEPT = ("logs", "results")  # folders of the archive, beside RECORD and SUMMARY


class Keeping:
    """out: where the two files are written. folder: what goes into the archive. again: an archive that is there already is
    taken up, and only what is done again is replaced."""

    def __init__(self, out: Path, folder: Path, dry: bool, *, again: bool = False) -> None:
        self.out, self.folder, self.dry = out, folder, dry
        self.outcomes: list[Outcome] = []
        self._names: list[str] = []
        self._notes: list[str] = []
        for name in KEPT:
            (folder / name).mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if again and (out / ARCHIVE).exists():
            self._take_up(out / ARCHIVE)

    def plan(self, names: list[str]) -> None:
        """What is going to be done: of what was never begun the summary says so."""
        self._names = names
        self.write()

    def add(self, outcome: Outcome) -> None:
        self.outcomes = [one for one in self.outcomes if one.name != outcome.name] + [outcome]
        self.write()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.write()

    def write(self) -> None:
        """Both files, each put aside first and then renamed: what reads them, or a kill, finds the old or the new one."""
        text = self.summary()
        record = {
            "dry": self.dry,
            "planned": self._names,
            "outcomes": [one.as_dict() for one in self.outcomes],
        }
        aside = self.out / f"{ARCHIVE}.unfinished"
        with tarfile.open(aside, "w:gz", compresslevel=3) as archive:
            _put(archive, RECORD, json.dumps(record, indent=1).encode())
            _put(archive, SUMMARY, text.encode())
            for file in sorted(path for name in KEPT for path in (self.folder / name).rglob("*")):
                if file.is_file():  # read first: a stage may be writing to it
                    _put(archive, str(file.relative_to(self.folder)), file.read_bytes())
        aside.replace(self.out / ARCHIVE)
        aside = self.out / f"{SUMMARY}.unfinished"
        aside.write_text(text, encoding="utf-8")
        aside.replace(self.out / SUMMARY)

    def summary(self) -> str:
        done = {one.name for one in self.outcomes}
        rows = [
            f"| {one.name} | {one.result} | {one.seconds:.0f} | {one.said.replace(chr(124), chr(47))} |"
            for one in self.outcomes
        ]
        rows += [f"| {name} | not yet | | |" for name in self._names if name not in done]
        head = "# GPU check" + (
            ", a dry run on the CPU: its figures say nothing" if self.dry else ""
        )
        table = ["| stage | how it ended | seconds | what it came to |", "|---|---|---|---|", *rows]
        return "\n".join([head, "", *table, "", *self._notes]).rstrip() + "\n"

    def _take_up(self, archive: Path) -> None:
        with tarfile.open(archive) as old:
            record = json.loads(_read(old, RECORD))
            if record["dry"] != self.dry:
                raise SystemExit(
                    f"{archive} is of a run that was {'' if record['dry'] else 'not '}dry"
                )
            for member in old.getmembers():
                if member.isfile() and member.name.split("/")[0] in KEPT:
                    target = self.folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(_read(old, member.name))
        self.outcomes = [Outcome(**one) for one in record["outcomes"]]


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file: Any = archive.extractfile(name)
    content: bytes = file.read()
    return content
