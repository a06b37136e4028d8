"""Tuning: the pick by hand, and on held-out questions: what works, and what is luck."""

from __future__ import annotations

import json
import random

import pytest
import torch
from study_runs import TOML, invoke
from typer.testing import CliRunner

from steerfast import SteeringVector, load_plan
from steerfast.cli import app
from steerfast.experiments.config import load_preset
from steerfast.experiments.dose import random_control
from steerfast.experiments.effects import Effect
from steerfast.experiments.measure import Laboratory, cut
from steerfast.experiments.questions import Question, Split
from steerfast.experiments.trials import Trials
from steerfast.experiments.tune import CONTROLS, Candidate, HeldOut, front, pick, tune

SMALL = TOML.replace("coefficients = [0.5, 1]\n", "coefficients = [0.001, 0.002]\n")
LAYER = 2
DRAW = random.Random(0)


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "tiny.toml"
    # Small doses act in proportion, so that one of two signs always moves the wanted way.
    toml = TOML.replace("layers = [0, 2]\n", f"layers = [{LAYER}]\n", 1)
    path.write_text(toml.replace("coefficients = [0.5, 1]\n", "coefficients = [0.05, 0.1]\n"))
    return path


@pytest.fixture
def noise(tmp_path):
    """Text that a random model now and then predicts: every printable letter is as frequent as any other."""
    draw = random.Random(2)
    letters = [chr(code) for code in range(33, 127)]
    blocks = ["".join(draw.choices(letters, k=400)) for _ in range(12)]
    path = tmp_path / "noise.txt"
    path.write_text("\n\n".join(blocks))
    return path


def asked(count):
    """Questions of no sense; half of them match with A."""
    words = ["".join(DRAW.choices("abcdefgh ", k=12)) for _ in range(count)]
    return tuple(
        Question(f"Human:\n{word}\n\nAI: (", *("AB" if n % 2 else "BA"))
        for n, word in enumerate(words)
    )


ONE_SIDED = Split(
    *(
        tuple(Question(one.prompt, "A", "B") for one in part)
        for part in (asked(2), asked(6), asked(10))
    )
)


def search(tiny, preset, noise, tmp_path, vector, **options):
    laboratory = Laboratory(tiny)
    text = cut("text", tiny.tokenizer, noise.read_text().split("\n\n"), 256, 1500)
    config = load_preset(preset).behaviours
    stage = lambda what, steps: lambda: None  # noqa: E731
    return tune(
        laboratory, config, "myopic", ONE_SIDED, vector, text, Trials(tmp_path / "trials"), stage,
        budget=0.99, **options,
    )  # fmt: skip


def towards(tiny, answer, other):
    """The direction at the output of a layer that says one answer more than another: straight to the vocabulary."""
    head = tiny.model.lm_head.weight.detach()
    first, second = (tiny.tokenizer(one)["input_ids"][-1] for one in (answer, other))
    return SteeringVector("v", {LAYER: head[first] - head[second]}, {LAYER: 4.0})


def effects_by_hooks(tiny, directions, coefficient):
    """Mean log-odds(A : B) of each direction over the held-out questions, minus the unsteered."""
    tokens = [tiny.tokenizer(one)["input_ids"][-1] for one in "AB"]

    def odds(added):
        hook = tiny.model.model.layers[LAYER].register_forward_hook(
            lambda module, args, output: output + added
        )
        found = []
        for one in ONE_SIDED.test:
            ids = torch.tensor([tiny.tokenizer(one.prompt)["input_ids"]])
            with torch.no_grad():
                chances = tiny.model(ids).logits[0, -1].double().log_softmax(-1)
            found.append(float(chances[tokens[0]] - chances[tokens[1]]))
        hook.remove()
        return torch.tensor(found)

    plain = odds(torch.zeros(64))
    return [
        float((odds(coefficient * 4.0 * one / one.norm()) - plain).mean()) for one in directions
    ]


def test_a_direction_that_works_is_best(tiny, preset, noise, tmp_path):
    vector = towards(tiny, "A", "B")
    found = search(tiny, preset, noise, tmp_path, vector)
    assert found.best is not None
    assert found.best.coefficient > 0
    assert found.plan.layers == (LAYER,)
    held = found.held_out
    assert held.questions == 10
    controls = [random_control(vector, seed).at(LAYER) for seed in range(CONTROLS)]
    wanted = effects_by_hooks(tiny, [vector.at(LAYER), *controls], found.best.coefficient)
    assert [held.effect.mean, *held.random] == pytest.approx(wanted, abs=1e-4)
    assert 0 < held.effect.low <= held.effect.mean <= held.effect.high
    away = search(tiny, preset, noise, tmp_path, vector, sign=-1)
    assert away.best.coefficient < 0
    assert away.held_out.effect.mean > 0


def test_a_direction_of_no_meaning_is_not_best(tiny, preset, noise, tmp_path):
    """Each likes A or B on all questions, with an interval that leaves out 0; one in twenty may be the strongest."""
    every = []
    for seed in range(100, 108):
        vector = random_control(towards(tiny, "A", "B"), seed)
        found = search(tiny, preset, noise, tmp_path, vector)
        if found.picked is not None:
            assert found.picked.effect > 0
            assert (found.plan is None) == (found.best is None)
            every.append(found)
    assert len(every) >= 4
    assert sum(found.held_out.effect.low > 0 for found in every) >= 4
    assert sum(found.best is not None for found in every) <= 1


def test_better_than_chance_by_hand():
    def better(low, mean, *random):
        return HeldOut(9, Effect(mean, low, 2.0), random).better_than_chance

    assert better(0.1, 0.5, 0.2, -0.4)
    assert not better(0.0, 0.5, 0.2, -0.4)
    assert not better(-0.1, 0.5, 0.2)
    assert not better(0.1, 0.5, 0.2, -0.6)  # the opposite of a random direction is as random
    assert not better(0.1, 0.5, 0.2, None)
    assert not HeldOut(9, Effect(None, None, None), (0.0,)).better_than_chance


def test_the_front_and_the_pick_by_hand():
    def candidate(effect, lost):
        return Candidate(0, 1.0, effect, lost)

    weak, better, dear, useless = (
        candidate(0.1, 0.0),
        candidate(0.4, 0.01),
        candidate(0.9, 0.3),
        candidate(0.3, 0.02),
    )
    every = [dear, useless, weak, better]
    assert front(every) == (weak, better, dear)
    assert pick(every, 0.02) == better
    assert pick(every, 0.3) == dear
    assert pick(every, 0.005) == weak
    assert pick([dear], 0.02) is None


# -- the command


def said(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_that_nothing_is_better_than_chance(preset, tiny_folder, tmp_path, noise):
    """A random model has no behaviours."""
    preset.write_text(SMALL)
    out, plan = tmp_path / "study", tmp_path / "plan.json"
    common = ("tune", "myopic", "--preset", preset, "--model", tiny_folder, "--out", out, "--text", noise, "--budget", 0.9)  # fmt: skip
    facts = invoke(*common, "--json")
    assert facts["best"] is None
    assert facts["picked"]["effect"] > 0
    assert facts["picked"]["lost"] <= 0.9
    assert facts["held_out"]["better_than_chance"] is False
    assert len(facts["held_out"]["random"]) == CONTROLS
    assert len(facts["held_out"]["effect"]) == 3
    lines = (out / "trials.jsonl").read_text()
    again = invoke(*common, "--json", "--budget", 0.8)
    assert (out / "trials.jsonl").read_text() == lines, "the same trials serve every budget"
    assert again["front"] == facts["front"]
    shown = said(*common, "--save-plan", plan)
    assert shown.exit_code == 1
    assert "nothing here is better than chance" in " ".join(shown.stdout.split())
    assert "random directions" in shown.stdout
    assert "no plan was written" in " ".join(shown.stderr.split())
    assert not plan.exists()


def test_the_command_writes_a_plan_that_generate_takes(
    preset, tiny_folder, tmp_path, noise, monkeypatch
):
    preset.write_text(SMALL)
    monkeypatch.setattr(HeldOut, "better_than_chance", True)
    plan = tmp_path / "plan.json"
    facts = invoke(
        "tune", "myopic", "--preset", preset, "--model", tiny_folder, "--out", tmp_path / "study", "--text", noise,
        "--json", "--budget", 0.99, "--save-plan", plan,
    )  # fmt: skip
    assert facts["plan"] == str(plan)
    assert load_plan(plan).layers == (facts["best"]["layer"],)
    shown = said("generate", "hi", "--plan", plan, "--tokens", 2, "--model", tiny_folder, "--json")
    assert json.loads(shown.stdout)["plan"] == load_plan(plan).digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kindness",), "no behaviour 'kindness'"),
        (("myopic", "--data", "absent"), "no myopic.json"),
        (("myopic", "--text", "absent.txt"), "no corpus at absent.txt"),
        (("myopic", "--budget", "1"), "budget is a share"),
        (("myopic", "--out", __file__), "is a file, but a study has a folder"),
    ],
)
def test_data_is_looked_at_before_a_model_is_loaded(arguments, message, preset):
    """There is no such model, and nobody finds out."""
    result = said("tune", *arguments, "--preset", preset, "--model", "no/such/model")
    assert message in str(result.exception)
