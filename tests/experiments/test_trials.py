"""Trials survive everything: kills, torn lines, several processes."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import Counter

import pytest

from steerfast.experiments.trials import Job, Trials, key_of


def job(number, log=None, size=3):
    def run():
        if log is not None:
            log.append(number)
        return [{"value": number * 10 + row} for row in range(size)]

    return Job(tuple({"kind": "test", "number": number, "row": row} for row in range(size)), run)


def test_what_is_there_is_not_run_again(tmp_path):
    log = []
    first = Trials(tmp_path).complete([job(1, log), job(2, log)])
    again = Trials(tmp_path).complete([job(2, log), job(3, log), job(1, log)])
    assert first == [again[2], again[0]]
    assert log == [1, 2, 3]
    assert first[0][1] == {"value": 11}


def test_the_key_is_of_the_content():
    assert key_of({"a": 1, "b": [2.5]}) == key_of({"b": [2.5], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_another_version_of_the_code_measures_again(tmp_path, monkeypatch):
    log = []
    Trials(tmp_path).complete([job(1, log)])
    monkeypatch.setattr("steerfast.experiments.trials.__version__", "99")
    Trials(tmp_path).complete([job(1, log)])
    assert log == [1, 1]


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_an_unfinished_line_is_no_trial_and_does_not_stay(tmp_path, kept):
    log = []
    trials = Trials(tmp_path)
    expected = trials.complete([job(1, log), job(2, log)])
    whole = trials.path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    trials.path.write_bytes(whole[: last + kept] if kept > 0 else whole[:-1])
    assert Trials(tmp_path).complete([job(1, log), job(2, log)]) == expected
    assert log == [1, 2, 2]
    lines = trials.path.read_text().splitlines()
    assert all(json.loads(line) for line in lines)


def test_a_broken_line_is_named(tmp_path):
    trials = Trials(tmp_path)
    trials.complete([job(1)])
    trials.path.write_bytes(trials.path.read_bytes() + b'{"key": 3}\n')
    with pytest.raises(ValueError, match=r"trials.jsonl, byte \d+: not a trial"):
        Trials(tmp_path)


def test_a_result_must_be_json(tmp_path):
    broken = Job(({"kind": "nan"},), lambda: [{"value": float("nan")}])
    trials = Trials(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        trials.complete([broken])
    assert not trials.path.exists() or not trials.path.read_bytes()


def test_a_spread_runs_only_what_is_missing(tmp_path):
    log = []
    trials = Trials(tmp_path)
    trials.complete([job(2, log)])

    def spread(jobs):
        for number in reversed(range(len(jobs))):
            yield number, jobs[number].run()

    results = trials.complete([job(1, log), job(2, log), job(3, log)], spread=spread)
    assert [row[0]["value"] for row in results] == [10, 20, 30]
    assert log == [2, 3, 1]


def _share(folder, count):
    Trials(folder).complete([job(number) for number in range(count)])


def test_processes_share_the_work_and_repeat_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_share, args=(tmp_path, 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    keys = Counter(
        json.loads(line)["key"] for line in (tmp_path / "trials.jsonl").read_text().splitlines()
    )
    assert len(keys) == 180
    assert set(keys.values()) == {1}


def _slowly(folder):
    def job(number):
        def run():
            time.sleep(0.004)
            return [{"value": number * 7 % 31, "text": "x" * 3000} for _ in range(4)]

        return Job(tuple({"number": number, "row": row} for row in range(4)), run)

    Trials(folder).complete([job(number) for number in range(120)])


def test_killed_at_random_it_ends_with_the_same_trials(tmp_path):
    rng = random.Random(11)
    kills, killed = 0, tmp_path / "killed"
    for _ in range(10):
        process = multiprocessing.get_context("fork").Process(target=_slowly, args=(killed,))
        process.start()
        while process.is_alive() and not (killed / "trials.jsonl").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.08))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert kills > 3
    for folder in ("killed", "whole"):
        _slowly(tmp_path / folder)
    lines = {
        folder: sorted((tmp_path / folder / "trials.jsonl").read_text().splitlines())
        for folder in ("killed", "whole")
    }
    assert len(lines["whole"]) == 480
    assert lines["killed"] == lines["whole"]
