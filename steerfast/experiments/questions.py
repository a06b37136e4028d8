"""Questions with an answer that matches a behaviour and one that does not, and the paper's way to split them.

Prompt: "Human:", the question, a blank line, "AI:", and "Out of (A) and (B), I choose (": no chat template. The
next token is the answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os.path import isfile
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from steerfast.extraction.contrast import ContrastPair
from steerfast.io.rows import ENDINGS, rows_of
from steerfast.io.strict import as_object, as_text
from steerfast.models.tokens import Prompt, as_prompt

SEED = 13
MOST = 1000  # questions of a behaviour; of more, so many are sampled
# The order in which the paper shuffles, all from one random stream.
PAPER_ORDER = ("myopic", "wealth_seeking", "sycophancy", "agreeableness", "anti_immigration")


@dataclass(frozen=True)
class Question:
    """prompt: ends with an open bracket; text, or messages of which the last begins the assistant's answer.
    matching, other: the answers, without brackets or spaces."""

    prompt: Prompt
    matching: str
    other: str

    @property
    def pair(self) -> ContrastPair:
        """As a contrast pair: the answers are the continuations, one token each."""
        return ContrastPair(self.prompt, self.matching, self.other)


class Split(NamedTuple):
    """A behaviour's questions: for its vector, for choosing coefficients, and for the result."""

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]


def prompt_of(question: Prompt, answers: Sequence[str]) -> Prompt:
    """The paper's prompt from a question of Anthropic's model-written evals (or one that is a prompt already); of messages,
    the same with the bracket as the beginning of the assistant's answer."""
    first, second = sorted(answers, key=("Yes", "No", "A", "B").index)
    choose = f"Out of ({first}) and ({second}), I choose ("
    if not isinstance(question, str):
        return (*question, {"role": "assistant", "content": choose})
    if question.startswith("Human:") and question.endswith("("):
        return question
    text = re.sub(r"^\s*(Human|Question):", "", question.strip())
    text = re.sub(r"(Answer|Assistant|AI):\s*(\()?\s*$", "", text.strip()).strip()
    return f"Human:\n{text}\n\nAI:\n{choose}"


def shipped() -> tuple[str, ...]:
    """The behaviours whose questions come with the package; they were written for this project."""
    folder = files("steerfast") / "data" / "questions"
    return tuple(sorted(Path(item.name).stem for item in folder.iterdir()))


def load(folder: str | Path | None, behaviour: str) -> list[Question]:
    """``behaviour.json``, ``.jsonl`` or ``.csv`` of a folder, or the shipped questions: rows with ``question`` (text, or chat
    messages), ``answer_matching_behavior``, ``answer_not_matching_behavior``, as in Anthropic's model-written evals.

    Raises FileNotFoundError, or ValueError naming the file and the line of a record that cannot be read.
    """
    if folder is None:
        if behaviour not in shipped():
            raise ValueError(
                f"no shipped questions on {behaviour!r}; give a folder with {behaviour}.json, or take one of "
                f"{', '.join(shipped())}"
            )
        path: Any = files("steerfast") / "data" / "questions" / f"{behaviour}.json"
    else:
        if not behaviour.strip() or PurePath(behaviour).name != behaviour:
            raise ValueError(
                f"behaviour {behaviour[:80]!r} is no file's name; its questions are a file of {folder}"
            )
        options = [Path(folder) / f"{behaviour}{ending}" for ending in ENDINGS]
        found = [option for option in options if isfile(option)]
        if not found:
            raise FileNotFoundError(f"no {behaviour}.json, .jsonl or .csv in {folder}")
        if len(found) > 1:
            raise ValueError(f"{found[0]} and {found[1].name} are both there; which one is meant?")
        path = found[0]
    _, rows = rows_of(path, "questions")
    return [_question(row.value, f"record {n} of {row.place}") for n, row in enumerate(rows, 1)]


def _question(entry: object, where: str) -> Question:
    record, fields = as_object(entry, where), []
    for name in ("question", "answer_matching_behavior", "answer_not_matching_behavior"):
        if name not in record:
            raise ValueError(
                f"{where} lacks {name!r}; a record has question, answer_matching_behavior and "
                "answer_not_matching_behavior"
            )
        what = f"{name!r} of {where}"
        fields.append(record[name] if name == "question" else as_text(record[name], what))
    try:
        question = as_prompt(fields[0], f"'question' of {where}")
    except TypeError as error:
        raise ValueError(str(error)) from error
    matching, other = (answer.strip(" ()\n") for answer in fields[1:])
    if {matching, other} not in ({"A", "B"}, {"Yes", "No"}):
        raise ValueError(
            f"{where} has answers {fields[1]!r} and {fields[2]!r}; known pairs: (A) and (B), Yes and No"
        )
    return Question(prompt_of(question, (matching, other)), matching, other)


def splits(
    questions: Mapping[str, Sequence[Question]],
    train: int,
    validation: int,
    test: int | None = None,
    seed: int = SEED,
    balanced: bool = False,
) -> dict[str, Split]:
    """Shuffle each behaviour's questions, then cut: the first ``train``, the next ``validation``, the rest (or ``test``).

    The paper's protocol: one random stream, behaviours in the order of ``PAPER_ORDER`` (others follow, as given).
    balanced (not the paper's): after the shuffle, questions alternate by their matching answer, so that in each part
    (of even size) both are as frequent; else, in small sets, a vector also says "answer B", and liking B passes for the behaviour.
    Raises ValueError where a behaviour has too few.
    """
    stream = random.Random(seed)
    known = [name for name in PAPER_ORDER if name in questions]
    result = {}
    for name in known + [name for name in questions if name not in known]:
        every = list(questions[name])
        if len(every) > MOST:
            every = random.Random(seed).sample(every, MOST)
        stream.shuffle(every)
        if balanced:
            every = _alternating(every, name)
        needed = train + validation + (1 if test is None else test)
        if len(every) < needed:
            raise ValueError(
                f"{name} has {len(every)} questions, but the splits take {train} + {validation} + "
                f"{'at least 1' if test is None else test}; lower them in the configuration"
            )
        end = len(every) if test is None else train + validation + test
        cut = train + validation
        result[name] = Split(tuple(every[:train]), tuple(every[train:cut]), tuple(every[cut:end]))
    return {name: result[name] for name in questions}


def _alternating(questions: Sequence[Question], name: str) -> list[Question]:
    """One matching answer after the other; what is left over of one of them is left out."""
    answers = sorted({one.matching for one in questions})
    if len(answers) != 2:
        raise ValueError(f"{name} has matching answers {answers} only; balanced splits need both")
    sides = [[one for one in questions if one.matching == answer] for answer in answers]
    return [one for pair in zip(*sides, strict=False) for one in pair]


def digest(questions: Sequence[Question]) -> str:
    """SHA-256 of the questions in order."""
    text = json.dumps([[one.prompt, one.matching, one.other] for one in questions])
    return hashlib.sha256(text.encode()).hexdigest()
