"""``gpu_check.sh`` on small stages: whatever happens to one, what was done before is kept, and the summary says how far each came.

Time passes only where a test says so: nothing here is decided by how fast a machine is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu import boxed, check, keeping
from gpu.stages import Stage

BENCHMARKS = Path(check.__file__).parents[1]
SAVES = """
import json, os, pathlib
folder = pathlib.Path(os.environ["STEERFAST_RESULTS"]); folder.mkdir(exist_ok=True)
with open(folder / "fake.jsonl", "a") as out: out.write(json.dumps({"stage": NAME}) + chr(10))
print("so far: 1 of 1 passed", flush=True)
"""


def stage(name, code="", seconds=1000.0, **more):
    return Stage(name, seconds, ("-c", f"NAME = {name!r}\n{SAVES}\n{code}"), **more)


@pytest.fixture
def run(tmp_path):
    """``check.main`` on these stages: its exit status and OUT."""
    out = tmp_path / "out"

    def run(*stages, deadline=100000.0, options=()):
        return check.main([str(deadline), str(out), *options], stages), out

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def archived(out):
    """{name in the archive: its text}; read from end to end, so that it is whole."""
    with tarfile.open(out / keeping.ARCHIVE) as archive:
        return {one.name: archive.extractfile(one).read().decode() for one in archive.getmembers()}


def outcomes(out):
    return {one["name"]: one for one in json.loads(archived(out)[keeping.RECORD])["outcomes"]}


def test_two_files_are_left(run):
    status, out = run(stage("one"), stage("two"))
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == ["gpu.tgz", "summary.md"]
    files = archived(out)
    assert [json.loads(line)["stage"] for line in files["results/fake.jsonl"].splitlines()] == ["one", "two"]  # fmt: skip
    assert "so far: 1 of 1 passed" in files["logs/two.log"]
    assert files["summary.md"] == (out / "summary.md").read_text()
    assert "| two | passed | 0 | 1 of 1 passed; 1 result line |" in files["summary.md"]
    assert {one["result"] for one in outcomes(out).values()} == {"passed"}


def test_a_stage_that_fails_is_told_and_the_next_goes_on(run, capsys):
    status, out = run(stage("bad", "raise ValueError('no such kernel')"), stage("good"))
    assert status == 1
    found = outcomes(out)
    assert (found["bad"]["result"], found["good"]["result"]) == ("failed", "passed")
    assert found["bad"]["said"] == "1 of 1 passed; 1 result line; exit status 1"
    assert "no such kernel" in archived(out)["logs/bad.log"]
    assert "no such kernel" in capsys.readouterr().out  # its end is in the reply too


def test_nothing_comes_after_a_gate_that_fails(run):
    status, out = run(stage("gate", "raise SystemExit(3)", gate=True), stage("after"))
    assert status == 1
    assert outcomes(out).keys() == {"gate"}
    summary = (out / "summary.md").read_text()
    assert "| after | not yet |" in summary
    assert "nothing after gate would mean anything" in summary


def test_a_gate_that_nobody_needs_is_open(run):
    status, out = run(stage("gate", gate=True, unneeded="setup.py"), stage("after"))
    assert status == 0
    assert outcomes(out)["gate"]["said"] == "setup.py is there"
    assert outcomes(out)["after"]["result"] == "passed"


class Clock:
    """Stands at 0 until a file is there, and then far beyond every limit."""

    def __init__(self, file):
        self.file = file

    def monotonic(self):
        return 1e6 if self.file.exists() else 0.0

    time, sleep = staticmethod(time.time), staticmethod(time.sleep)


HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print("so far: 132 of 627 passed, 0 failed", flush=True)
pathlib.Path(FILE).write_text(str(child.pid))
time.sleep(3600)
"""


def gone(pid):
    """No such process, or one that is over and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stage_that_hangs_is_ended_with_all_it_started_and_its_count_is_kept(
    run, tmp_path, monkeypatch
):
    file = tmp_path / "hangs"
    monkeypatch.setattr(boxed, "time", Clock(file))
    monkeypatch.setattr(boxed, "GRACE", 0.2)
    status, out = run(
        stage("first"), stage("hangs", f"FILE = {str(file)!r}\n{HANGS}"), stage("late")
    )
    found = outcomes(out)
    assert status == 1
    assert found["first"]["result"] == "passed"
    assert found["hangs"]["result"] == "out of time"
    assert found["hangs"]["said"] == "132 of 627 passed, 0 failed; 1 result line"
    assert found["late"]["result"] == "not started"  # the clock is beyond the deadline
    child = int(file.read_text())
    while not gone(child):
        time.sleep(0.01)


def test_a_stage_gets_what_is_left_of_the_deadline(monkeypatch):
    """Less what ending it may take; a command is told so."""
    now = [0.0]
    monkeypatch.setattr(boxed, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    told = []
    box = boxed.Box(Path("nowhere"), 100.0, 3.0, {})
    monkeypatch.setattr(
        boxed.Box, "start", lambda self, stage, dry: told.append(min(stage.seconds, self.left))
    )
    monkeypatch.setattr(boxed.Box, "finish", lambda self, stage, every: "finished")
    one = stage("one", seconds=60.0)
    assert box.run(one, False, every=lambda: None) == "finished"
    now[0] = 70.0
    box.run(one, False, every=lambda: None)
    assert told == [60.0, 30.0]
    now[0] = 98.0
    assert box.run(one, False, every=lambda: None).result == "not started"
    boxed_in = Stage(
        "two", 60, ("-m", "it", "--seconds", "{seconds}"), tool="tool", options=("-x",)
    )
    assert boxed_in.command_line("py", 57.0, None, dry=False) == [
        "py",
        "-m",
        "it",
        "--seconds",
        "57",
    ]
    assert boxed_in.command_line("py", 57.0, "/a/tool", dry=False)[:3] == ["/a/tool", "-x", "py"]


def test_a_tool_that_is_not_here_is_said(run):
    status, out = run(stage("watched", tool="no-such-tool"))
    assert status == 0
    assert outcomes(out)["watched"]["said"] == "no-such-tool is not here"


def test_what_runs_in_the_background_is_waited_for_by_what_needs_it(run, tmp_path):
    """``third`` needs what ``first`` makes, which waits for ``second``: in turn they would never end."""
    made, gone_on = (str(tmp_path / name) for name in ("made", "gone on"))
    wait = f"import time\nwhile not pathlib.Path({gone_on!r}).exists(): time.sleep(0.01)\n"
    stages = (
        stage("first", f"{wait}pathlib.Path({made!r}).touch()", background=True),
        stage("second", f"pathlib.Path({gone_on!r}).touch()"),
        stage("third", f"assert pathlib.Path({made!r}).exists()", after=("first",)),
    )
    status, out = run(*stages)
    assert status == 0
    assert list(outcomes(out)) == ["second", "first", "third"]


def test_one_stage_is_run_again_and_the_rest_is_kept(run):
    code = (
        "import sys; sys.exit(not pathlib.Path(os.environ['STEERFAST_RESULTS'], 'mended').exists())"
    )
    stages = (stage("one"), stage("bad", code))
    status, out = run(*stages)
    assert (status, outcomes(out)["bad"]["result"]) == (1, "failed")
    mended = (stages[0], stage("bad"))
    status, _ = run(*mended, options=("--only", "bad"))
    assert (status, outcomes(out)["bad"]["result"]) == (0, "passed")
    assert list(outcomes(out)) == ["one", "bad"]
    lines = archived(out)["results/fake.jsonl"].splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["one", "bad", "bad"]
    with pytest.raises(SystemExit, match="no stage 'three'; there are: one, bad"):
        run(*stages, options=("--only", "three"))


def test_a_long_stage_is_kept_while_it_runs(run, tmp_path, monkeypatch):
    """The stage ends when what it has saved so far is in the archive."""
    monkeypatch.setattr(boxed, "EVERY", 0.0)
    archive = tmp_path / "out" / keeping.ARCHIVE
    waits = f"""
import tarfile, time
def kept():
    with tarfile.open({str(archive)!r}) as found: return "results/fake.jsonl" in found.getnames()
while not kept(): time.sleep(0.01)
"""
    assert run(stage("long", waits))[0] == 0


# -- the whole killed -----------------------------------------------------------------------------


def begun(tmp_path, stages):
    """``check.main`` in a process of its own, whose lines can be read as they come."""
    (tmp_path / "fakes.py").write_text(
        f"import sys\nfrom gpu import check\nfrom gpu.stages import Stage\nsys.exit(check.main(sys.argv[1:], {stages!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "fakes.py"), "100000", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_it_leaves_all_that_was_done(tmp_path, seed):
    """What it had said to be done is in the archive, which is whole."""
    rng = random.Random(seed)
    process = begun(tmp_path, tuple(stage(f"stage-{number}") for number in range(8)))
    said = [process.stdout.readline().partition(":")[0] for _ in range(rng.randrange(1, 6))]
    time.sleep(rng.uniform(0.0, 0.2))  # into the next stage, or into writing
    process.kill()
    said += [line.partition(":")[0] for line in process.stdout.read().splitlines() if line.startswith("stage-")]  # fmt: skip
    process.wait()
    files, found = archived(tmp_path / "out"), outcomes(tmp_path / "out")
    assert set(said) <= found.keys()
    saved = {json.loads(line)["stage"] for line in files["results/fake.jsonl"].splitlines()}
    assert set(said) <= saved
    assert {f"logs/{name}.log" for name in said} <= files.keys()
    assert all(f"| {name} | passed |" in (tmp_path / "out" / "summary.md").read_text() for name in said[:-1])  # fmt: skip


def test_asked_to_stop_it_keeps_what_the_stage_had(tmp_path):
    process = begun(tmp_path, (stage("one"), stage("two", "import time\ntime.sleep(3600)")))
    assert process.stdout.readline().startswith("one: passed")
    log = None
    while log is None or "\nso far" not in log.read_text():
        log = next(tmp_path.glob("gpu-check-*/logs/two.log"), None)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    process.stdout.close()
    files = archived(tmp_path / "out")
    assert "so far: 1 of 1 passed" in files["logs/two.log"]
    assert len(files["results/fake.jsonl"].splitlines()) == 2
    assert outcomes(tmp_path / "out").keys() == {"one"}
    assert "Stopped by SystemExit" in files["summary.md"]
