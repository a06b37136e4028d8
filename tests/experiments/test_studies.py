"""The studies from end to end on a tiny model, their arithmetic by hand, and what they refuse."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steerfast import SteeringVector, attach, contrast
from steerfast.cli import app
from steerfast.experiments import broad, config, corpora, effects, questions, sparsity
from steerfast.experiments.answers import Score, score
from steerfast.experiments.choice import GridPoint, best, chosen
from steerfast.experiments.dose import log_probability_differences, pair_batch
from steerfast.experiments.measure import Laboratory, Pieces, check_capable, cut, model_digest
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials
from steerfast.experiments.tune import Candidate, front, pick
from steerfast.io import load_plan

TOML = """
model = "tiny"
dtype = "float32"

[behaviours]
behaviours = ["myopic", "agreeableness"]
train = 6
validation = 5
test = 6
layers = [0, 2]
coefficients = [0.5, 1]
scale = "stream"
choose = "log_odds"
individual_layers = [1, 2]
global_coefficients = [-1.0, 1.0, 1.0]
pair_coefficient = 0.5
tax_tokens = 1500
examples = ["Human: a", "b"]
simultaneous = { myopic = 1, agreeableness = 2 }

[broad]
samples = 4
sample_tokens = 40
tokens = 150
context = 64
layers = [[0], [2], [1, 2]]
coefficients = [0.5, 1, 2, 4]
scale = "stream"
control_layer = 2
examples = ["def f"]
"""


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


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout.splitlines()[-1])


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


# -- end to end ----------------------------------------------------------------------------------------


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


# -- questions and scores --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", questions.shipped())
def test_shipped_questions_are_balanced_and_distinct(name):
    asked = questions.load(None, name)
    assert len(asked) == 64
    assert len({one.prompt for one in asked}) == 64
    answers = {asked[0].matching, asked[0].other}
    for answer in answers:
        assert sum(one.matching == answer for one in asked) == 32
    for one in asked:
        assert one.prompt.startswith("Human:\n")
        first, second = sorted(answers, key=["Yes", "No", "A", "B"].index)
        assert one.prompt.endswith(f"\n\nAI:\nOut of ({first}) and ({second}), I choose (")


def test_raw_records_of_the_evals_become_the_papers_prompts(tmp_path):
    record = {
        "question": "Question: Tea or coffee?\n\nChoices:\n (A) Tea\n (B) Coffee\n\nAnswer:",
        "answer_matching_behavior": " (B)",
        "answer_not_matching_behavior": " (A)",
    }
    (tmp_path / "drinks.jsonl").write_text(json.dumps(record) + "\n")
    (one,) = questions.load(tmp_path, "drinks")
    assert one.prompt == (
        "Human:\nTea or coffee?\n\nChoices:\n (A) Tea\n (B) Coffee\n\nAI:\nOut of (A) and (B), I choose ("
    )
    assert (one.matching, one.other) == ("B", "A")
    assert questions.prompt_of(one.prompt, ("A", "B")) == one.prompt


def test_questions_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="no shipped questions on 'kindness'"):
        questions.load(None, "kindness")
    with pytest.raises(FileNotFoundError, match=r"no x\.json or x\.jsonl"):
        questions.load(tmp_path, "x")
    (tmp_path / "x.json").write_text('[{"question": "a"}]')
    with pytest.raises(ValueError, match="x, record 1 lacks 'answer_matching_behavior'"):
        questions.load(tmp_path, "x")
    bad = {"question": "a", "answer_matching_behavior": "C", "answer_not_matching_behavior": "A"}
    (tmp_path / "x.json").write_text(json.dumps([bad]))
    with pytest.raises(ValueError, match="known pairs"):
        questions.load(tmp_path, "x")
    asked = questions.load(None, "myopic")
    with pytest.raises(ValueError, match="64 questions, but the splits take 40"):
        questions.splits({"myopic": asked}, 40, 20, 10)


def test_balanced_splits_have_as_many_of_each_answer():
    asked = {name: questions.load(None, name) for name in ("myopic", "agreeableness")}
    plain = questions.splits(asked, 30, 14, 20)
    splits = questions.splits(asked, 30, 14, 20, balanced=True)
    for name, split in splits.items():
        for part in split:
            assert sum(one.matching == part[0].matching for one in part) == len(part) / 2
        assert {one for part in split for one in part} == set(asked[name])
    assert plain != splits
    one_sided = [one for one in asked["myopic"] if one.matching == "A"]
    with pytest.raises(ValueError, match=r"matching answers \['A'\] only"):
        questions.splits({"myopic": one_sided}, 4, 2, balanced=True)


def test_a_score_by_hand():
    found = score(["A", "B", "A", "x"], ["A", "A", "B", "B"], ("A", "B"))
    assert (found.total, found.matches, found.faulty) == (4, 1, 1)
    assert found.matching == 0.25
    assert dict(found.counts) == {"A": 2, "B": 1, "x": 1}
    with pytest.raises(ValueError, match="2 responses to 1 questions"):
        score(["A", "B"], ["A"], ("A", "B"))
    with pytest.raises(ValueError, match=r"\['C'\] are not among"):
        score(["A"], ["C"], ("A", "B"))


def test_collapse_is_more_than_95_percent_and_ends_a_sweep_unless_it_was_there():
    def with_most(count):
        return Score(200, 100, 0, {"A": count, "B": 200 - count})

    assert not with_most(190).collapsed
    assert with_most(191).collapsed
    assert with_most(191).ends_sweep()
    assert not with_most(191).ends_sweep(with_most(200))
    assert with_most(191).ends_sweep(with_most(190))
    assert not Score(200, 90, 10, {"A": 100, "B": 90, "x": 10}).ends_sweep()
    faulty = Score(200, 90, 11, {"A": 100, "B": 89, "x": 11})
    assert faulty.ends_sweep(with_most(200))
    assert not faulty.ends_sweep(Score(200, 90, 1, {"A": 100, "B": 99, "x": 1}))


def point(layer, c, matches, usable=True, effect=None):
    return GridPoint(layer, c, Score(10, matches, 0, {"A": 5, "B": 5}), usable, effect)


def test_the_best_point_steers_most_of_those_that_are_usable():
    points = [
        *(point(0, 1.0, 6, effect=0.1), point(0, 2.0, 9, False, 9.0), point(0, 3.0, 7, effect=0.3)),
        *(point(0, -1.0, 3, effect=-0.1), point(0, -2.0, 3, effect=-0.5)),
        point(1, 0.5, 7, effect=None),
    ]
    assert best(points, 1).coefficient == 0.5  # as many matches as 3.0, and smaller
    assert best(points, 1, "log_odds").coefficient == 3.0
    assert best(points, -1).coefficient == -1.0
    assert best(points, -1, "log_odds").coefficient == -2.0
    assert best([point(0, 1.0, 5, False)], 1) is None
    assert chosen({"b": points}, [0, 1]) == {"b": {0: {-1: -1.0, 1: 3.0}, 1: {1: 0.5}}}


# -- effects -----------------------------------------------------------------------------------------------


def test_effects_and_interactions_by_hand():
    plain = [0.0, 1.0, 2.0, -1.0]
    steered = [1.0, 2.5, 3.0, 0.5]
    found = effects.effect(steered, plain)
    assert found.mean == pytest.approx(1.25)
    assert 1.0 <= found.low <= found.mean <= found.high <= 1.5
    assert effects.effect(steered, plain) == found, "the same seed resamples alike"
    one, other = [0.5, 1.5, 2.0, -1.0], [0.0, 1.5, 2.5, 0.0]
    expected = sum(
        (t - p) - (a - p) - (b - p) for t, p, a, b in zip(steered, plain, one, other, strict=True)
    )
    assert effects.interaction(steered, [one, other], plain).mean == pytest.approx(expected / 4)
    assert effects.effect([None, 1.0], [0.0, 0.0]) == (None, None, None)


def test_liking_one_answer_cancels_between_strata():
    """Log-odds of the matching answer, where "A" gains 2 nats and the behaviour 0.1."""
    strata = ["A", "B"] * 10
    noise = [0.01 * (number % 3 - 1) for number in range(20)]
    steered = [
        (2.0 if answer == "A" else -2.0) + 0.1 + each
        for answer, each in zip(strata, noise, strict=True)
    ]
    found = effects.effect(steered, [0.0] * 20, strata)
    assert 0.08 < found.low < found.mean < found.high < 0.12
    blind = effects.effect(steered, [0.0] * 20)
    assert blind.low < -0.5
    assert blind.mean == pytest.approx(found.mean, abs=1e-5)
    # Also where there are more of one answer.
    uneven = effects.effect(steered[:9] + steered[10::2], [0.0] * 14, strata[:9] + strata[10::2])
    assert 0.08 < uneven.mean < 0.12


def test_an_interval_covers_as_often_as_it_says():
    """Of 300 experiments with a known mean, about 95% of intervals hold it."""
    rng = random.Random(1)
    held = 0
    for trial in range(300):
        values = [rng.gauss(0.3, 1.0) for _ in range(60)]
        _, low, high = effects.effect(values, [0.0] * 60, seed=trial)
        held += low <= 0.3 <= high
    assert 270 <= held <= 297


def test_cosines_of_known_vectors():
    vectors = {
        "x": SteeringVector("x", {3: torch.tensor([2.0, 0.0])}),
        "y": SteeringVector("y", {3: torch.tensor([-3.0, 3.0])}),
    }
    (matrix,) = effects.cosines(vectors, [3]).values()
    assert matrix[0][1] == pytest.approx(-(0.5**0.5), abs=1e-6)


# -- broad ---------------------------------------------------------------------------------------------------


def accuracy(top1):
    return {"top1": top1, "top10": 1.0, "loss": 1.0, "tokens": 100}


def test_text_kept_is_read_off_the_line_between_grid_points():
    points = [
        (0.0, accuracy(0.6), accuracy(0.8)),
        (1.0, accuracy(0.6), accuracy(0.76)),
        (2.0, accuracy(0.3), accuracy(0.36)),
        (3.0, accuracy(0.1), accuracy(0.2)),
    ]
    rows = {row["code"]: row for row in broad.text_kept(points)}
    # 90% of code is 0.72, a tenth of the way from 0.76 to 0.36; text there is a tenth of the way from 1 to 0.5.
    assert rows[0.9]["coefficient"] == pytest.approx(1.1)
    assert rows[0.9]["text"] == pytest.approx(0.95)
    assert rows[0.5]["coefficient"] == pytest.approx(1.9)
    assert rows[0.2]["text"] is None


def test_a_line_jumps_when_little_is_left_and_stops_when_nothing_is():
    setting = config.load_preset("llama-2-7b-chat").broad
    line = broad.Line("x", SteeringVector("v", {0: torch.ones(2)}), (0,))
    line.points.append((0.0, accuracy(0.6), accuracy(0.8)))
    line.advance(0.25, accuracy(0.5), accuracy(0.8 * 0.16), setting)
    assert line.next == 1
    line.advance(0.5, accuracy(0.5), accuracy(0.8 * 0.14), setting)
    assert line.next == 6
    line.advance(1.0, accuracy(0.5), accuracy(0.8 * 0.04), setting)
    assert line.next >= len(setting.coefficients)


def test_controls_keep_what_they_say():
    generator = torch.Generator().manual_seed(0)
    text = SteeringVector("text", {0: torch.randn(500, generator=generator)})
    code = SteeringVector("code", {0: torch.randn(500, generator=generator)})
    vector = broad.difference(text, code)
    torch.testing.assert_close(vector.at(0), text.at(0) - code.at(0))
    control = broad.permuted_control(text, code, 13)
    assert abs(float(torch.cosine_similarity(control.at(0), vector.at(0), dim=0))) < 0.2
    assert float(control.at(0).sum()) == pytest.approx(float(vector.at(0).sum()), abs=1e-3)
    matched = broad.with_norms_of(vector, control)
    assert float(matched.at(0).norm()) == pytest.approx(float(vector.at(0).norm()), rel=1e-6)
    assert float(torch.cosine_similarity(control.at(0), matched.at(0), dim=0)) > 0.999999


def test_corpora(tmp_path, monkeypatch):
    assert len(corpora.read_corpus("prose")) > 30
    assert "def " in corpora.read_corpus("stdlib", 5)[0]
    (tmp_path / "a.txt").write_text("short\n\n" + "word " * 60 + "\n\n" + "other " * 60)
    assert len(corpora.read_corpus(str(tmp_path / "a.txt"))) == 2
    (tmp_path / "b.txt").write_text("short")
    with pytest.raises(ValueError, match="no text of at least 200"):
        corpora.read_corpus(str(tmp_path / "b.txt"))
    first, rest = corpora.split_corpus("x", [str(number) for number in range(10)], 3, 13)
    assert len(first) == 3
    assert sorted(first + rest) == [str(number) for number in range(10)]
    with pytest.raises(ValueError, match="1 text"):
        corpora.split_corpus("x", ["a"], 3, 13)
    rows = [{"body": "y" * 300}] * 3
    fake = type(sys)("datasets")
    fake.load_dataset = lambda name, configuration, split, streaming: iter(rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(corpora.read_corpus("hub:some/set:main:test:body", 2)) == 2
    with pytest.raises(ValueError, match="no field 'text'; it has body"):
        corpora.read_corpus("hub:some/set")
    rows = [{"text": set_name * 100, "meta": {"set": set_name}} for set_name in ("Github", "Books")]
    (code,) = corpora.read_corpus("hub:some/set::train:text:meta.set=Github")
    (text,) = corpora.read_corpus("hub:some/set:::text:meta.set!=Github")
    assert (code[:6], text[:5]) == ("Github", "Books")
    with pytest.raises(ValueError, match=r"a row has no 'meta\.kind'"):
        corpora.read_corpus("hub:some/set:::text:meta.kind=x")
    with pytest.raises(ValueError, match="no condition on rows"):
        corpora.read_corpus("hub:some/set:::text:meta")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        corpora.read_corpus("hub:some/set")


def test_pieces_hold_as_many_tokens_as_asked_for(tiny):
    pieces = cut("x", tiny.tokenizer, ["a" * 30, "b" * 45], 20, 50)
    assert pieces.tokens == 50
    assert max(map(len, pieces.ids)) == 20
    assert cut("x", tiny.tokenizer, ["a" * 30], 20, 500).tokens < 32
    assert pieces.digest != Pieces("x", pieces.ids[:-1]).digest
    with pytest.raises(ValueError, match="no two tokens"):
        cut("x", tiny.tokenizer, [""], 20, 50)


# -- configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.presets())
def test_presets_load(name):
    found = config.load_preset(name)
    assert found.name == name
    assert found.behaviours is not None
    assert set(found.behaviours.simultaneous) == set(found.behaviours.behaviours)
    assert list(found.broad.coefficients) == sorted(found.broad.coefficients)


def test_the_papers_preset_is_the_papers():
    found = config.load_preset("llama-2-7b-chat").behaviours
    assert found.chosen["myopic"]["10"] == (-1, 10)
    assert "collapse" in found.flagged["myopic@10"]
    assert (found.train, found.validation, found.test, found.scale) == (500, 200, 0, "raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train = 6", "trian = 6"), "unknown trian"),
        (("train = 6", ""), "lacks train"),
        (("layers = [0, 2]", "layers = 2"), r"layers in \[behaviours\] of bad.toml is 2"),
        (('model = "tiny"', "model = "), "is not TOML"),
        (('dtype = "float32"', 'dtype = "float32"\nspeed = 3'), "bad.toml has unknown speed"),
    ],
)
def test_bad_configurations_are_explained(tmp_path, change, message):
    path = tmp_path / "bad.toml"
    path.write_text(TOML.replace(*change))
    with pytest.raises(ValueError, match=message):
        config.load_preset(path)


def test_unknown_presets_and_studies(tmp_path):
    with pytest.raises(ValueError, match=r"no preset 'llama'; give a \.toml file, or one of"):
        config.load_preset("llama")
    path = tmp_path / "half.toml"
    path.write_text('model = "x"\ndtype = "float32"\n')
    result = CliRunner().invoke(app, ["study", "broad", "--preset", str(path)])
    assert "configures no study of broad" in str(result.exception)
    result = CliRunner().invoke(app, ["study", "report", str(tmp_path)])
    assert "no results.json" in str(result.exception)


def test_a_models_digest_sees_weights_and_settings(tiny):
    first = model_digest(tiny.model)
    assert model_digest(tiny.model) == first
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    second = model_digest(tiny.model)
    tiny.model.config.rms_norm_eps = 0.5
    assert len({first, second, model_digest(tiny.model)}) == 3


def test_a_model_that_predicts_nothing_cannot_lose_anything():
    with pytest.raises(ValueError, match="predicts none of the 7 tokens of 'code'"):
        check_capable({"top1": 0.0, "tokens": 7}, "code")


# -- tune ------------------------------------------------------------------------------------------------------


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


def test_tune_writes_a_plan_that_generate_takes(preset, tiny_folder, tmp_path, noise):
    # Small doses act in proportion, so that one of two signs always moves the wanted way.
    preset.write_text(TOML.replace("coefficients = [0.5, 1]\n", "coefficients = [0.001, 0.002]\n"))
    out, plan = tmp_path / "study", tmp_path / "plan.json"
    common = ("--preset", preset, "--model", tiny_folder, "--out", out, "--text", noise, "--json")
    facts = invoke("tune", "myopic", *common, "--budget", 0.9, "--plan", plan)
    assert facts["best"] is not None
    assert facts["best"]["lost"] <= 0.9
    assert facts["plan"] == str(plan)
    assert load_plan(plan).layers == (facts["best"]["layer"],)
    lines = (out / "trials.jsonl").read_text()
    again = invoke("tune", "myopic", *common, "--budget", 0.5)
    assert (out / "trials.jsonl").read_text() == lines, "the same trials serve every budget"
    assert again["front"] == facts["front"]
    away = invoke("tune", "myopic", *common, "--away", "--budget", 0.9)
    assert away["best"] not in (None, facts["best"])
    result = CliRunner().invoke(app, ["tune", "kindness", "--preset", str(preset)])
    assert "no behaviour 'kindness'" in str(result.exception)


# -- sparsity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_pruning_removes_the_smallest_and_nothing_else(tiny, share):
    for pattern in ("unstructured", "of 4"):
        twin = sparsity.pruned(tiny.model, sparsity.Pruning(pattern, share))
        before = tiny.model.model.layers[1].mlp.up_proj.weight
        after = twin.model.layers[1].mlp.up_proj.weight
        kept = after != 0
        assert torch.equal(after[kept], before[kept])
        if pattern == "of 4":
            groups = kept.view(len(kept), -1, 4)
            assert (groups.sum(-1) == 4 - 4 * share).all()
            sizes = before.abs().view(len(kept), -1, 4)
            lost = sizes.masked_fill(groups, 0).amax(-1)
            assert (lost <= sizes.masked_fill(~groups, torch.inf).amin(-1)).all()
        else:
            assert float((~kept).float().mean()) == pytest.approx(share, abs=1e-3)
            assert before[~kept].abs().max() <= before[kept].abs().min()
        assert torch.equal(twin.model.embed_tokens.weight, tiny.model.model.embed_tokens.weight)
        assert torch.equal(twin.lm_head.weight, tiny.model.lm_head.weight)


def test_pruning_refuses_what_it_does_not_know(tiny):
    with pytest.raises(ValueError, match="'of 4' with quarters"):
        sparsity.pruned(tiny.model, sparsity.Pruning("of 4", 0.3))


def test_sparsity_from_the_command_line(tiny_folder, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'model = "tiny"\ndtype = "float32"\n[sparsity]\ndirections = ["sentiment"]\nlayer = 1\n'
        "coefficients = [-0.2, 0.2]\nshares = [0.5]\ntax_tokens = 100\n"
    )
    out = tmp_path / "study"
    facts = invoke(
        *("study", "sparsity", "--preset", path, "--model", tiny_folder, "--out", out, "--json")
    )
    results = json.loads(Path(facts["results"]).read_text())
    names = [model["name"] for model in results["models"]]
    assert names == ["dense", "50% unstructured", "2:4"]
    dense = results["models"][0]
    assert dense["cosine"]["sentiment"] == pytest.approx(1.0)
    assert dense["slope"] == dense["slope_of_dense_vector"]
    assert results["models"][2]["zeros"] == pytest.approx(0.5, abs=1e-6)
    assert Path(facts["report"]).read_text().count("<svg") == 2


def test_pairs_are_measured_as_the_dose_response_does(tiny):
    """Against ``log_probability_differences``, which sums over the continuations' tokens only."""
    pairs = contrast.load("sentiment").held_out[:4]
    vector = SteeringVector("v", {1: torch.ones(64)})
    plan = individual(vector, 1, 0.5)
    (result,) = Laboratory(tiny).pairs([plan], pairs).run()
    with attach(tiny.model) as handle:
        expected = log_probability_differences(handle, pair_batch(tiny.tokenizer, pairs), plan)
    assert result["log_odds"] == pytest.approx(expected.tolist(), abs=1e-3)
