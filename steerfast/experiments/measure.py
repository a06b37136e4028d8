"""Measurements of plans on a model, as jobs for ``Trials``: answers to questions, prediction of texts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steerfast.experiments import questions as asking
from steerfast.experiments.answers import Score, score
from steerfast.experiments.prompts import pad_token
from steerfast.experiments.questions import Question
from steerfast.experiments.trials import Job, Result
from steerfast.extraction.contrast import ContrastPair, preferences
from steerfast.extraction.samples import refuse_one_text
from steerfast.models import attach
from steerfast.models.load import Loaded
from steerfast.models.tokens import Prompt, read, token_ids
from steerfast.plans.plan import Plan
from steerfast.sweep.engine import sweep
from steerfast.sweep.readouts import Accuracy, NextAnswer, NextTokens

SAMPLED = 4096  # values of each weight that enter a model's digest


@dataclass(frozen=True)
class Pieces:
    """A corpus as tokens: pieces of at most the context's length."""

    name: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Predicted tokens: all but the first of each piece."""
        return sum(len(piece) - 1 for piece in self.ids)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """Plans, and what to run them on: questions, contrast pairs, pieces of a corpus, or a prompt to go on with. Plain data."""

    plans: tuple[Plan | None, ...]
    questions: tuple[Question, ...] = ()
    pairs: tuple[ContrastPair, ...] = ()
    pieces: Pieces | None = None
    prompt: str = ""
    tokens: int = 0

    @property
    def measure(self) -> str:
        """What the results are, as their trials call it."""
        if self.pieces is not None:
            return "accuracy"
        if self.tokens:
            return "text"
        return "pairs" if self.pairs else "answers"


class Laboratory:
    """A model and its tokenizer. ``told`` is called with how many more (plan, prompt) have been measured."""

    def __init__(self, loaded: Loaded, told: Callable[[int], None] | None = None) -> None:
        self.model, self.tokenizer, self.name = loaded
        self.told = told
        self.digest = model_digest(self.model)

    def answers(self, plans: Sequence[Plan | None], asked: Sequence[Question]) -> Job:
        """A trial a plan: {"responses": [text], "log_odds": [nats or None]}, question by question.

        Greedy, one token, as the paper does it; log-odds are log p(matching) - log p(other).
        """
        return self._job(Task(tuple(plans), questions=tuple(asked)), asking.digest(asked))

    def accuracy(self, plans: Sequence[Plan | None], pieces: Pieces) -> Job:
        """A trial a plan: the fields of ``Accuracy`` over a corpus."""
        return self._job(Task(tuple(plans), pieces=pieces), pieces.digest)

    def pairs(self, plans: Sequence[Plan | None], pairs: Sequence[ContrastPair]) -> Job:
        """A trial a plan: {"log_odds": [nats]}, log p(positive) - log p(negative) of each pair's continuations.

        The prompt's own tokens have the same chances on both sides, and cancel.
        """
        pairs = preferences(pairs, "log-odds")
        text = json.dumps([one.parts for one in pairs])
        data = hashlib.sha256(text.encode()).hexdigest()
        return self._job(Task(tuple(plans), pairs=tuple(pairs)), data)

    def texts(self, plans: Sequence[Plan | None], prompt: str, tokens: int) -> Job:
        """A trial a plan: {"text": ...}, a greedy continuation of ``tokens`` tokens, of the prompt as it is (no chat template)."""
        data = hashlib.sha256(json.dumps([prompt, tokens]).encode()).hexdigest()
        return self._job(Task(tuple(plans), prompt=prompt, tokens=tokens), data)

    def run(self, task: Task) -> list[Result]:
        """The results of a task, plan by plan."""
        if task.pieces is not None:
            return self._accuracy(task.plans, task.pieces)
        if task.pairs:
            return self._pairs(task.plans, task.pairs)
        if task.tokens:
            return self._texts(task.plans, task.prompt, task.tokens)
        return self._answers(task.plans, task.questions)

    def _job(self, task: Task, data: str) -> Job:
        identities = tuple(
            {
                "measure": task.measure,
                "plan": None if plan is None else plan.digest,
                "data": data,
                "model": self.digest,
            }
            for plan in task.plans
        )
        return Job(identities, partial(self.run, task), task)

    def _answers(self, plans: Sequence[Plan | None], asked: Sequence[Question]) -> list[Result]:
        ids = [token_ids(self.tokenizer, one.prompt) for one in asked]
        pairs = [
            (
                self._answer_token(tokens, one.prompt, one.matching),
                self._answer_token(tokens, one.prompt, one.other),
            )
            for tokens, one in zip(ids, asked, strict=True)
        ]
        values = sweep(self.model, plans, ids, lambda head: NextAnswer(head, pairs), done=self.told)
        words = {token: self.tokenizer.decode([token]) for token in _tokens(values)}
        # The first token of an answer stands for it, also where a tokenizer takes "Yes" apart.
        known = [
            {pair[0]: one.matching, pair[1]: one.other}
            for pair, one in zip(pairs, asked, strict=True)
        ]
        return [
            {
                "responses": [
                    here.get(int(token), words[int(token)])
                    for here, token in zip(known, row[:, 0].tolist(), strict=True)
                ],
                "log_odds": [_rounded(value) for value in (row[:, 1] - row[:, 2]).tolist()],
            }
            for row in values
        ]

    def _accuracy(self, plans: Sequence[Plan | None], pieces: Pieces) -> list[Result]:
        ids = pieces.ids
        values = sweep(self.model, plans, ids, lambda head: NextTokens(head, ids), done=self.told)
        return [
            {
                name: _rounded(value)
                for name, value in zip(Accuracy._fields, Accuracy.of(row), strict=True)
            }
            for row in values
        ]

    def _pairs(self, plans: Sequence[Plan | None], pairs: Sequence[ContrastPair]) -> list[Result]:
        ids = [read(self.tokenizer, *side).ids for one in pairs for side in one.sides]
        every = sweep(self.model, plans, ids, lambda head: NextTokens(head, ids), done=self.told)
        chances = every[..., 3]
        odds = (chances[:, 0::2] - chances[:, 1::2]).tolist()
        return [{"log_odds": [_rounded(value) for value in row]} for row in odds]

    def _texts(self, plans: Sequence[Plan | None], prompt: str, tokens: int) -> list[Result]:
        ids = torch.tensor([token_ids(self.tokenizer, prompt)], device=self.model.device)
        batch = ids.expand(len(plans), -1)
        steered = attach(self.model, slots=4 * len(plans))
        with torch.inference_mode(), steered as handle, handle.use(plans):
            out = self.model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=pad_token(self.tokenizer),
            )
        new = out[:, ids.shape[1] :]
        return [
            {"text": text} for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ]

    def _answer_token(self, before: Sequence[int], prompt: Prompt, answer: str) -> int:
        """The first token of an answer that follows a prompt."""
        ids = read(self.tokenizer, prompt, answer).ids
        if len(ids) <= len(before) or ids[: len(before)] != list(before):
            raise ValueError(
                f"the tokenizer does not keep the prompt's tokens apart from the answer {answer!r} after "
                f"{str(prompt)[-20:]!r}; end prompts where a token ends"
            )
        return int(ids[len(before)])


def scored(result: Result, asked: Sequence[Question]) -> Score:
    """The score of a trial of ``Laboratory.answers``."""
    allowed = (asked[0].matching, asked[0].other)
    return score(result["responses"], [one.matching for one in asked], allowed)


def check_capable(unsteered: Result, what: str) -> None:
    """ValueError for a model that predicts no token even unsteered: of nothing, no share can be lost."""
    if not unsteered["top1"]:
        raise ValueError(
            f"the unsteered model predicts none of the {unsteered['tokens']:g} tokens of {what!r}, so that what steering costs "
            "cannot be told; give more text, or another model"
        )


def cut(name: str, tokenizer: Any, texts: Sequence[str], context: int, tokens: int) -> Pieces:
    """Texts as pieces of at most ``context`` tokens, ``tokens`` predicted tokens in all.

    Each text starts a piece, with the tokenizer's own special tokens; what is left over of one token is dropped.
    Raises ValueError where there is not one token to predict.
    """
    refuse_one_text(texts, f"the corpus {name!r}")
    pieces: list[tuple[int, ...]] = []
    left = tokens
    for text in texts:
        ids = token_ids(tokenizer, text)
        for start in range(0, len(ids), context):
            piece = tuple(ids[start : start + min(context, left + 1)])
            if len(piece) > 1:
                pieces.append(piece)
                left -= len(piece) - 1
            if left <= 0:
                return Pieces(name, tuple(pieces))
    if not pieces:
        raise ValueError(f"the texts of {name!r} hold no two tokens in a row")
    return Pieces(name, tuple(pieces))


def model_digest(model: Any) -> str:
    """SHA-256 over the configuration and, of every weight, its name, shape, dtype and up to 4096 evenly spread
    values: enough to tell a fine-tuned or pruned copy, without reading gigabytes."""
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version", "architectures")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()


def _tokens(values: Tensor) -> list[int]:
    return sorted({int(token) for token in values[..., 0].flatten().tolist()})


def _rounded(value: float) -> float | None:
    """For storing: 6 digits are more than float32 sums of different batches agree on. None: not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
