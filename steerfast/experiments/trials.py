"""Trials: results that are never lost and never measured twice, as content-addressed lines of JSON.

A trial's key is the digest of everything that its result follows from: what was measured, the plan, the data, the
model, the version of the code. A job is a few trials that are measured together in one sweep. Jobs are claimed by
locks that the system releases when a process dies, and the trials of a job are appended in one write, so that any
number of processes can be killed and started at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from steerfast import __version__

POLL = 0.2  # seconds between looks at what other processes do

Identity = Mapping[str, Any]
Result = dict[str, Any]


def key_of(identity: Identity) -> str:
    """SHA-256 of an identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """Trials that are measured together: the identity of each, and ``run``, which gives their results in order. ``task``: what
    to do, as data that can be sent to another machine, where there is such a thing.

    The composition of a job must not depend on what has been measured: rounding may differ between batches of
    different shapes, and a rerun shall give the same bits.
    """

    identities: tuple[Identity, ...]
    run: Callable[[], Sequence[Result]]
    task: Any = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key_of({**identity, "code": __version__}) for identity in self.identities)


class Spread(Protocol):
    """Runs the jobs it is given, somewhere, and yields (number of the job, its results) as they come."""

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Sequence[Result]]]: ...


class Trials:
    """The trials of a folder, in ``trials.jsonl``; processes that share the folder share them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "trials.jsonl"
        self._results: dict[str, Result] = {}
        self._read_to = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._results)

    def refresh(self) -> None:
        """Read what has been appended since, by whichever process. A line that a killed process left
        unfinished is no trial."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                try:
                    trial = json.loads(line)
                    self._results.setdefault(trial["key"], trial["result"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{self.path}, byte {self._read_to - len(line)}: not a trial ({error}); remove that line, and "
                        "what it held is measured again"
                    ) from error

    def results(self, job: Job) -> list[Result] | None:
        """The results of a job, if all of them are here."""
        found = [self._results.get(key) for key in job.keys]
        return None if any(one is None for one in found) else found  # type: ignore[return-value]

    def complete(
        self,
        jobs: Sequence[Job],
        *,
        done: Callable[[Job], None] = lambda job: None,
        spread: Spread | None = None,
    ) -> list[list[Result]]:
        """The results of every job: those that are here, and the others by running them, unless another process
        that shares the folder does. ``spread`` runs them elsewhere. done: called with each job once it is there."""
        waiting = dict(enumerate(jobs))
        results: dict[int, list[Result]] = {}

        def collect() -> None:
            self.refresh()
            for number, job in list(waiting.items()):
                found = self.results(job)
                if found is not None:
                    results[number] = found
                    del waiting[number]
                    done(job)

        collect()
        if spread is not None and waiting:
            numbers = list(waiting)
            for at, found in spread([waiting[number] for number in numbers]):
                self._append(jobs[numbers[at]], found)
                collect()
        while waiting:
            ran = False
            for number, job in list(waiting.items()):
                if number in waiting and self._run(job):
                    ran = True
                    collect()
            if not ran:
                time.sleep(POLL)
                collect()
        return [results[number] for number in range(len(jobs))]

    def _run(self, job: Job) -> bool:
        """Run a job unless it is done or another process is at it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "locks" / f"{key_of({'job': job.keys})[:16]}.lock")
        try:
            with lock.acquire(blocking=False):
                self.refresh()
                if self.results(job) is None:
                    self._append(job, job.run())
                return True
        except Timeout:
            return False

    def _append(self, job: Job, results: Sequence[Result]) -> None:
        """All lines of a job in one write, behind the last whole line."""
        from filelock import FileLock

        lines = [
            {"key": key, **identity, "code": __version__, "result": result}
            for key, identity, result in zip(job.keys, job.identities, results, strict=True)
        ]
        text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in lines)
        with FileLock(self.folder / "locks" / "append.lock"), self.path.open("ab+") as file:
            _drop_unfinished_line(file)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _drop_unfinished_line(file: Any) -> None:
    """Cut what a killed process left behind the last newline."""
    end = file.seek(0, os.SEEK_END)
    step = 4096
    start = end
    while start:
        start = max(0, start - step)
        file.seek(start)
        block = file.read(min(step, end - start))
        if b"\n" in block:
            start += block.rindex(b"\n") + 1
            break
    file.truncate(start)
    file.seek(0, os.SEEK_END)
