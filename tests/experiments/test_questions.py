"""Questions with two answers: what is shipped, what is read, how they are split and scored, and the best dose."""

from __future__ import annotations

import json

import pytest
import torch
from plain_streams import byte_ids, chat_tokenizer, said

from steerfast.experiments import questions
from steerfast.experiments.answers import Score, score
from steerfast.experiments.choice import GridPoint, best, chosen
from steerfast.experiments.measure import Laboratory
from steerfast.models.load import Loaded
from steerfast.models.tokens import token_ids


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


def test_questions_as_messages_and_as_a_table(tmp_path):
    asked = [said("system", "Be brief."), said("user", "Tea (A) or coffee (B)?")]
    answers = {"answer_matching_behavior": " (B)", "answer_not_matching_behavior": " (A)"}
    (tmp_path / "drinks.json").write_text(
        json.dumps({"questions": [{"question": asked, **answers}]})
    )
    (one,) = questions.load(tmp_path, "drinks")
    assert one.prompt == (*asked, said("assistant", "Out of (A) and (B), I choose ("))
    read = "<s>[system] Be brief.\n[user] Tea (A) or coffee (B)?\n[assistant] Out of (A) and (B), I choose ("
    assert token_ids(chat_tokenizer(), one.prompt) == byte_ids(read)
    assert len(questions.digest([one])) == 64
    names = ",".join(("question", *answers))
    (tmp_path / "table.csv").write_text(f'{names}\n"Tea, or\ncoffee?", (B), (A)\nWhat?,(B),x\n')
    with pytest.raises(ValueError, match=r"record 2 of .*table\.csv \(line 4\) has answers"):
        questions.load(tmp_path, "table")
    (tmp_path / "table.csv").write_text(f'{names}\n"Tea, or\ncoffee?", (B), (A)\n')
    (one,) = questions.load(tmp_path, "table")
    assert one.prompt == "Human:\nTea, or\ncoffee?\n\nAI:\nOut of (A) and (B), I choose ("
    (tmp_path / "table.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"table\.jsonl and table\.csv are both there"):
        questions.load(tmp_path, "table")


def test_answers_to_messages_are_those_to_their_text(tiny):
    """One BOS, whoever writes it; the first token of an answer follows the bracket."""
    model, _, name = tiny
    laboratory = Laboratory(Loaded(model, chat_tokenizer(), name))
    asked = [said("user", "Tea?"), said("assistant", "I choose (")]
    text = "<s>[user] Tea?\n[assistant] I choose ("
    each = [questions.Question(prompt, "A", "B") for prompt in (asked, text, text[3:])]
    (result,) = laboratory.answers([None], each).run()
    with torch.no_grad():
        scores = model(torch.tensor([byte_ids(text)])).logits[0, -1].double().log_softmax(-1)
    odds = float(scores[byte_ids("A")[0]] - scores[byte_ids("B")[0]])
    assert result["log_odds"] == pytest.approx([odds] * 3, abs=1e-4)


def test_questions_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="no shipped questions on 'kindness'"):
        questions.load(None, "kindness")
    with pytest.raises(FileNotFoundError, match=r"no x\.json, \.jsonl or \.csv in"):
        questions.load(tmp_path, "x")
    (tmp_path / "x.json").write_text('[{"question": "a"}]')
    with pytest.raises(
        ValueError, match=r"record 1 of .*x\.json \(line 1\) lacks 'answer_matching_behavior'"
    ):
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
