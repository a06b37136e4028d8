"""Samples: texts as tokens, each with the part of it that is asked about. Made, and checked, before a model runs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from steerfast.extraction.contrast import ContrastPair
from steerfast.models.tokens import Prompt, are_many, as_prompt, check_ids, read
from steerfast.plans.fields import whole

Position = Literal["last", "mean"] | int
Side = Literal[1, -1]
SIDES: tuple[Side, Side] = (1, -1)
Texts = Iterable[Prompt | Mapping[str, Any]]
TEXT_KEYS = ("text", "prompt", "messages")  # of a row of a data set


class Sample(NamedTuple):
    """A text as tokens; ``first`` is where the part of interest begins, ``side`` which mean it joins."""

    tokens: Sequence[int]
    first: int
    side: Side


def pair_samples(tokenizer: Any, pairs: Sequence[ContrastPair]) -> Iterator[tuple[Sample, Sample]]:
    """The two sides of each pair; ValueError for a continuation without tokens."""
    for number, pair in enumerate(pairs, 1):
        one, other = (
            _continued(tokenizer, *given, side, f"pair {number}")
            for given, side in zip(pair.sides, SIDES, strict=True)
        )
        yield one, other


def _continued(
    tokenizer: Any, prompt: Prompt, continuation: Prompt, side: Side, where: str
) -> Sample:
    tokens, first = _read(where, tokenizer, prompt, continuation)
    if first >= len(tokens):
        raise ValueError(f"the continuation {continuation!r} of {where} has no tokens")
    return Sample(tokens, first, side)


def text_samples(
    tokenizer: Any, texts: Texts, side: Side, max_tokens: int, what: str
) -> Iterator[tuple[Sample]]:
    """Each text by itself, cut after ``max_tokens``; of interest is all but its first token, or the answer of messages that
    end with one. what: of whom they are, for errors."""
    for number, entry in enumerate(texts, 1):
        where = f"text {number} of {what}"
        text = as_text_or_messages(entry, where)
        tokens, first = _read(where, tokenizer, text, None, max_tokens)
        if not text or not tokens:
            raise ValueError(f"{where} is empty; leave it out")
        if isinstance(text, str) or first == 0:
            first = min(1, len(tokens) - 1)
        if first >= len(tokens):
            raise ValueError(
                f"the answer in {where} begins behind its first {max_tokens} tokens; raise max_tokens"
            )
        # An array, since a corpus stays here while the model reads it: 4 bytes a token.
        yield (Sample(array("i", tokens), first, side),)


def _read(where: str, *given: Any) -> tuple[list[int], int]:
    try:
        return read(*given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def as_text_or_messages(entry: object, where: str) -> Prompt:
    """A text or messages, also as a row of a data set that has one of ``text``, ``prompt``, ``messages``."""
    if isinstance(entry, Mapping) and "role" not in entry:
        known = [key for key in TEXT_KEYS if key in entry]
        if len(known) != 1:
            raise ValueError(
                f"{where} is a row with {', '.join(map(str, entry)) or 'nothing'}; a text is at one of the keys "
                f"{', '.join(TEXT_KEYS)}"
            )
        entry = entry[known[0]]
    return as_prompt(entry, where)


def refuse_one_text(texts: object, what: str) -> None:
    """TypeError for one text (or a file, or a table) where many are wanted."""
    if not are_many(texts):
        raise TypeError(
            f"{what} takes an iterable of texts, and {type(texts).__name__} {str(texts)[:60]!r} is not; one text is [text], a "
            "file is steerfast.extraction.read_texts(path), a table one of its columns"
        )


def as_position(position: object) -> Position:
    """``last``, ``mean`` or an int; ValueError for anything else."""
    if position == "last" or position == "mean":
        return position
    try:
        return whole("a position", position)
    except TypeError:
        raise ValueError(
            f"position {position!r} is outside a text; use last, mean or an index"
        ) from None


def token_weights(sample: Sample, position: Position) -> list[tuple[int, float]]:
    """Which tokens enter the mean of a sample, with weights that sum to 1. ValueError for an index outside of it."""
    size = len(sample.tokens)
    if position == "mean":
        share = 1.0 / (size - sample.first)
        return [(index, share) for index in range(sample.first, size)]
    index = size - 1 if position == "last" else position
    if index < 0:
        index += size
    if not 0 <= index < size:
        raise ValueError(
            f"position {position!r} is outside a text of {size} tokens; use last, mean or an index"
        )
    return [(index, 1.0)]


def check(samples: Iterable[Sample], position: Position, model: Any) -> None:
    """ValueError where a text has no token at ``position``, or one that the model does not know."""
    for number, sample in enumerate(samples, 1):
        if position != "mean":
            token_weights(sample, position)
        check_ids(sample.tokens, f"text {number}", model)
