"""One stage in its box: a process group with a time limit, a log, and a line that says how far it came."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.stages import Stage

ROOT = Path(__file__).parents[2]
GRACE = 3.0  # seconds between asking a stage to end and ending it
EVERY = 10.0  # seconds between two looks at what a stage has saved so far
TOOLS = ("/usr/local/cuda/bin",)  # where a CUDA toolkit's programs are if not on PATH
BEGUN = "STEERFAST_STAGE_BEGUN"  # when, for programs that end by themselves before their time is up


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. said: how far it came, in its own words or as a count of result lines."""

    name: str
    result: str
    seconds: float
    said: str

    @property
    def fine(self) -> bool:
        return self.result in ("passed", "skipped")

    def line(self) -> str:
        return f"{self.name}: {self.result}, {self.seconds:.0f} s; {self.said}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Going:
    process: subprocess.Popen[bytes]
    begun: float
    limit: float


@dataclass
class Box:
    """folder: logs/ and results/ are there. seconds: until when stages may run, from the making of this. worth: with less
    left than that none is begun. surroundings: what their environment has besides this one's."""

    folder: Path
    seconds: float
    worth: float
    surroundings: Mapping[str, str]
    began: float = field(default_factory=lambda: time.monotonic())
    going: dict[str, _Going] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def run(self, stage: Stage, dry: bool, every: Callable[[], None]) -> Outcome:
        """The stage to its end, or to that of its time; ``every``: called now and then meanwhile."""
        if stage.unneeded is not None and not dry and (ROOT / stage.unneeded).exists():
            return Outcome(stage.name, "skipped", 0.0, f"{stage.unneeded} is there")
        if stage.unneeded is not None and dry:
            return Outcome(stage.name, "skipped", 0.0, "a dry run needs none")
        if stage.tool is not None and not dry and self._found(stage.tool) is None:
            return Outcome(stage.name, "skipped", 0.0, f"{stage.tool} is not here")
        if self.left < self.worth:
            return Outcome(stage.name, "not started", 0.0, "no time was left")
        self.start(stage, dry)
        return self.finish(stage, every)

    def start(self, stage: Stage, dry: bool) -> None:
        # A dry run takes as long as it takes: how fast a CPU is says nothing.
        limit = max(self.left if dry else min(stage.seconds, self.left), 0.0)
        tool = None if stage.tool is None or dry else self._found(stage.tool)
        command = stage.command_line(sys.executable, limit - GRACE, tool, dry)
        log = self._log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            out.write(f"$ {' '.join(command)}\n".encode())
            out.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    **self.surroundings,
                    **stage.environment,
                    BEGUN: str(time.time()),
                },
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=os.setpgrp,  # a group of its own, to be ended with all that it has started
            )
        self.going[stage.name] = _Going(process, time.monotonic(), limit)

    def finish(self, stage: Stage, every: Callable[[], None] = lambda: None) -> Outcome:
        going = self.going[stage.name]
        end, looked, saved = going.begun + going.limit, time.monotonic(), self._saved()
        code = None
        while code is None and time.monotonic() < end:
            try:
                code = going.process.wait(timeout=max(0.01, min(0.25, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                if time.monotonic() - looked > EVERY:
                    every()
                    looked = time.monotonic()
        self._end(stage.name)
        result = "out of time" if code is None else "passed" if code == 0 else "failed"
        said = self._said(stage, self._saved() - saved)
        if code:
            said = f"{said}; exit status {code}" if said else f"exit status {code}"
        return Outcome(stage.name, result, time.monotonic() - going.begun, said)

    def end_all(self) -> None:
        for name in list(self.going):
            self._end(name)

    def tail(self, stage: Stage, lines: int = 25) -> str:
        return "\n".join(self._text(stage).splitlines()[-lines:])

    def _end(self, name: str) -> None:
        """Asks the group to end, then ends it: also what a stage that is over has left running."""
        process = self.going.pop(name).process
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
            time.sleep(0.05)  # for its children to hear it too
        process.wait()

    def _said(self, stage: Stage, lines: int) -> str:
        """The last thing in the log that looks like a count, and how many results were saved."""
        found = re.findall(stage.said, self._text(stage), re.MULTILINE)
        told = ["".join(found[-1])] if found else []  # of several alternatives one has matched
        if lines:
            told.append(f"{lines} result line{'s'[: lines > 1]}")
        return "; ".join(told) or "nothing counted"

    def _saved(self) -> int:
        """Result lines that stages have saved."""
        files = (self.folder / "results").glob("*.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    def _log(self, stage: Stage) -> Path:
        return self.folder / "logs" / f"{stage.name}.log"

    def _text(self, stage: Stage) -> str:
        return self._log(stage).read_text(encoding="utf-8", errors="replace")

    def _found(self, tool: str) -> str | None:
        return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(TOOLS))
