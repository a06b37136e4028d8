"""Scoring of answers as the paper does it: matching score, faulty answers, mode collapse.

Greedy, one token, compared as text with the expected answer (van der Weij, Poesio, Schoots 2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLLAPSE = 0.95  # more than this share of one answer is mode collapse
FAULTY = (
    0.05  # more than this share of faulty answers ends the sweep of a layer: the paper's 10 of 200
)


@dataclass(frozen=True)
class Score:
    """What a behaviour's questions were answered.

    total: questions. matches: answers that equal the one that matches the behaviour. faulty: answers that are
    none of the allowed. counts: how often each answer was given, most frequent first.
    """

    total: int
    matches: int
    faulty: int
    counts: Mapping[str, int]

    @property
    def matching(self) -> float:
        """Matching score: matches / total."""
        return self.matches / self.total

    @property
    def collapsed(self) -> bool:
        """Mode collapse: one answer, whichever, to more than 95% of the questions. A matching score near one half is then no
        steering at all, since half of the questions expect that answer."""
        return max(self.counts.values()) > COLLAPSE * self.total

    def ends_sweep(self, unsteered: Score | None = None) -> bool:
        """The paper's stop rule: greater coefficients of this layer and sign are not tried after this one, which is not chosen
        either: mode collapse, or more than 5% faulty answers (the paper: more than 10 of 200).

        unsteered: the score without steering. What that shows already, as models do that are too small for the questions, says
        nothing about steering: collapse then does not count, and faulty answers count beyond its own. The paper had
        no such case.
        """
        collapsed = self.collapsed and not (unsteered is not None and unsteered.collapsed)
        faulty = self.faulty - (0 if unsteered is None else unsteered.faulty)
        return collapsed or faulty > FAULTY * self.total


def score(responses: Sequence[str], expected: Sequence[str], allowed: Sequence[str]) -> Score:
    """Score responses against the matching answers of the same questions.

    allowed: the answers that there are, such as ("A", "B"). Raises ValueError for lists of different
    lengths or empty ones, or an expected answer that is not allowed.
    """
    if len(responses) != len(expected) or not responses:
        raise ValueError(
            f"{len(responses)} responses to {len(expected)} questions; give one each, and at least one"
        )
    if not set(expected) <= set(allowed):
        raise ValueError(
            f"expected answers {sorted(set(expected) - set(allowed))} are not among those allowed, {list(allowed)}"
        )
    counts = Counter(responses)
    return Score(
        total=len(responses),
        matches=sum(given == wanted for given, wanted in zip(responses, expected, strict=True)),
        faulty=sum(number for answer, number in counts.items() if answer not in allowed),
        counts=dict(counts.most_common()),
    )
