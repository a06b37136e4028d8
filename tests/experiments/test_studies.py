"""Studies and tuning from end to end on a tiny model."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from study_runs import TOML, invoke

from steerfast import SteeringVector, attach
from steerfast.experiments import questions
from steerfast.experiments.measure import Laboratory
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def noise(tmp_path):
    """Text that a random model now and then predicts: every printable letter is as frequent as any other."""
    rng = random.Random(2)
    letters = [chr(code) for code in range(33, 127)]
    for name in ("noise.txt", "other.txt"):
        blocks = ["".join(rng.choices(letters, k=400)) for _ in range(12)]
        (tmp_path / name).write_text("\n\n".join(blocks))
    return tmp_path / "noise.txt"


def behaviours(preset, tiny_folder, out, *more):
    return invoke(
        *(
            "study",
            "behaviours",
            "--preset",
            preset,
            "--model",
            tiny_folder,
            "--out",
            out,
            "--json",
        ),
        *more,
    )


# -- end to end --------------------------------------------------------------------------------------


def test_behaviours_from_the_command_line(preset, tiny_folder, tmp_path):
    out = tmp_path / "study"
    facts = behaviours(preset, tiny_folder, out)
    results = json.loads(Path(facts["results"]).read_text())
    schemes = [arm["scheme"] for arm in results["test"]]
    assert schemes.count("combined") == 2 * 2 * 2 * 2
    assert schemes.count("simultaneous") == 3
    assert schemes.count("pair") == 2
    assert schemes[0] == "unsteered"
    first = results["test"][0]
    assert first["scores"]["myopic"]["effect"] == [0.0, 0.0, 0.0]
    zero = next(
        a for a in results["test"] if a["scheme"] == "simultaneous" and a["coefficient"] == 0
    )
    assert zero["scores"] == first["scores"]
    assert zero["tax"] == first["tax"]
    for name in ("myopic", "agreeableness"):
        for where in results["grid"][name]:
            assert where["total"] == 5
        assert results["cosines"]["1"][0][0] == pytest.approx(1.0)
    page = Path(facts["report"]).read_text()
    assert page.count("<svg") == 5
    assert [example["prompt"] for example in results["examples"]] == ["Human: a", "b"]
    labels = [text["label"] for text in results["examples"][0]["texts"]]
    assert labels[0] == "unsteered"
    assert labels[1].endswith("at layer 2")
    assert labels[1] in page
    assert "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", ""), (
        "nothing is loaded from elsewhere"
    )

    # Again: nothing is measured, and the very bytes come out.
    before = {
        path: (out / path).read_bytes() for path in ("results.json", "report.html", "trials.jsonl")
    }
    behaviours(preset, tiny_folder, out)
    assert before == {path: (out / path).read_bytes() for path in before}


def test_broad_from_the_command_line(preset, tiny_folder, tmp_path, noise):
    out = tmp_path / "study"
    facts = invoke(
        *("study", "broad", "--preset", preset, "--model", tiny_folder, "--out", out, "--json"),
        *("--text", noise, "--code", noise.with_name("other.txt"), "--tokens", 900),
    )
    results = json.loads(Path(facts["results"]).read_text())
    names = [line["name"] for line in results["lines"]]
    assert names == ["0", "2", "1+2", "2 permuted", "2 permuted, norm matched"]
    for line in results["lines"]:
        assert line["points"][0]["coefficient"] == 0
        assert line["points"][0]["text"]["tokens"] == 900
    page = Path(facts["report"]).read_text()
    assert page.count("<svg") == 2
    invoke("study", "report", out, "--json")
    assert Path(facts["report"]).read_text() == page


def test_measured_answers_are_those_of_generate(tiny):
    """The laboratory against the plain way: one prompt, a patched model, one greedy token."""
    laboratory = Laboratory(tiny)
    asked = questions.load(None, "myopic")[:4] + questions.load(None, "agreeableness")[:0]
    generator = torch.Generator().manual_seed(3)
    vector = SteeringVector("v", {1: torch.randn(64, generator=generator)})
    plans = [None, individual(vector, 1, 3.0), individual(vector, 1, -3.0)]
    results = laboratory.answers(plans, asked).run()
    changed = False
    with attach(tiny.model) as handle:
        for plan, result in zip(plans, results, strict=True):
            for row, one in enumerate(asked):
                ids = tiny.tokenizer(one.prompt, return_tensors="pt")["input_ids"]
                with handle.use(plan), torch.inference_mode():
                    out = tiny.model.generate(
                        ids, max_new_tokens=1, do_sample=False, pad_token_id=1
                    )
                    chances = tiny.model(ids).logits[0, -1].double().log_softmax(-1)
                assert result["responses"][row] == tiny.tokenizer.decode([int(out[0, -1])])
                both = [
                    float(chances[tiny.tokenizer(each)["input_ids"][-1]])
                    for each in (one.matching, one.other)
                ]
                assert result["log_odds"][row] == pytest.approx(both[0] - both[1], abs=1e-4)
            changed |= result != results[0]
    assert changed


def test_one_plan_measured_alone_or_among_others_is_one_trial(tiny, tmp_path):
    laboratory, trials = Laboratory(tiny), Trials(tmp_path)
    asked = questions.load(None, "myopic")[:3]
    vector = SteeringVector("v", {1: torch.ones(64)})
    trials.complete([laboratory.answers([None, individual(vector, 1, 1.0)], asked)])
    assert len(trials) == 2
    trials.complete([laboratory.answers([None], asked)])
    assert len(trials) == 2
    trials.complete([laboratory.answers([None], asked[:2])])
    assert len(trials) == 3


def test_killed_at_random_a_study_ends_in_the_same_results(preset, tiny_folder, tmp_path):
    """SIGKILL, ten times, at any moment after it started to measure; in a fork, which need not import anything."""
    rng = random.Random(5)
    behaviours(preset, tiny_folder, tmp_path / "whole")
    kills, killed = 0, tmp_path / "killed"
    for _ in range(10):
        arguments = (preset, tiny_folder, killed)
        process = multiprocessing.get_context("fork").Process(target=behaviours, args=arguments)
        size = _size(killed)
        process.start()
        while process.is_alive() and _size(killed) == size:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert kills >= 5
    behaviours(preset, tiny_folder, killed)
    for name in ("results.json", "report.html"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _size(folder):
    """Grows with every vector that is kept and every trial."""
    files = [*folder.glob("vectors/*.safetensors"), *folder.glob("trials.jsonl")]
    return sum(path.stat().st_size for path in files)
