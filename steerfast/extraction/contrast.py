"""Contrast sets: prompts with two continuations, or two prompts, one for each pole of a direction.

The shipped sets (``steerfast/data``) were written for this project. ``train`` pairs make the vector,
``held_out`` pairs, on other subjects, measure it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from os.path import isfile
from pathlib import Path
from typing import Any, Literal

from steerfast.io.rows import rows_of
from steerfast.io.strict import as_text, no_other_keys
from steerfast.models.tokens import Prompt, are_many, as_prompt

Split = Literal["train", "held_out"]
_KEYS = ("prompt", "positive", "negative", "negative_prompt", "split")


@dataclass(frozen=True)
class ContrastPair:
    """``prompt + positive`` against ``prompt + negative``; continuations carry their own leading space.

    prompt: text, or chat messages, which go through the tokenizer's template; "" where positive and negative are whole
        texts. positive, negative: text, or messages that go on with the prompt's, as the assistant's answer.
    negative_prompt: what ``negative`` follows, where that is another prompt: the same question under another system
        message, or another question before the same answer.
    """

    prompt: Prompt
    positive: Prompt
    negative: Prompt
    negative_prompt: Prompt | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "positive", "negative", "negative_prompt"):
            value = getattr(self, name)
            if (name, value) != ("negative_prompt", None):
                object.__setattr__(self, name, as_prompt(value, f"{name!r} of a contrast pair"))

    @property
    def parts(self) -> list[Prompt]:
        """What it is made of, for JSON and digests."""
        parts = [self.prompt, self.positive, self.negative]
        return parts if self.negative_prompt is None else [*parts, self.negative_prompt]

    @property
    def sides(self) -> tuple[tuple[Prompt, Prompt], tuple[Prompt, Prompt]]:
        """(prompt, continuation) of the positive pole, and of the negative."""
        other = self.prompt if self.negative_prompt is None else self.negative_prompt
        return (self.prompt, self.positive), (other, self.negative)


@dataclass(frozen=True)
class ContrastSet:
    """A named direction by example; ``positive`` and ``negative`` say what its poles are."""

    name: str
    positive: str
    negative: str
    description: str
    train: tuple[ContrastPair, ...]
    held_out: tuple[ContrastPair, ...]


Pairs = ContrastSet | Iterable[ContrastPair | Mapping[str, Any] | tuple[Any, ...] | list[Any]]


def shipped() -> tuple[str, ...]:
    """The names of the contrast sets that come with the package."""
    folder = files("steerfast") / "data"
    return tuple(
        sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".json"))
    )


def load(name_or_path: str | Path) -> ContrastSet:
    """A shipped set by name, or a file of pairs: JSON (a list of them, or an object with ``pairs``), JSONL or CSV.

    A pair in a file is what ``extract_pairs`` takes, as an object or a list. Raises ValueError, with file and line, for
    what is no pair, and for an unknown name.
    """
    path: Any = Path(name_or_path)
    if not isfile(path):
        if str(name_or_path) not in shipped():
            raise ValueError(
                f"no contrast set {str(name_or_path)!r}; give a file (JSON, JSONL, CSV), or one of "
                f"{', '.join(shipped())}"
            )
        path = files("steerfast") / "data" / f"{name_or_path}.json"
    default = {"name": Path(path.name).stem, "positive": "positive", "negative": "negative"}
    default["description"] = ""
    given, rows = rows_of(path, "pairs", default)
    splits: dict[str, list[ContrastPair]] = {"train": [], "held_out": []}
    for number, row in enumerate(rows, 1):
        try:
            made, split = _pair(row.value, f"pair {number} of {row.place}")
        except TypeError as error:
            raise ValueError(str(error)) from error
        splits[split or "train"].append(made)
    if not splits["train"]:
        raise ValueError(f"{name_or_path} holds no pairs to extract from")
    facts = {
        name: as_text(given.get(name, text), f"{name!r} of {name_or_path}")
        for name, text in default.items()
    }
    return ContrastSet(**facts, train=tuple(splits["train"]), held_out=tuple(splits["held_out"]))


def as_pairs(given: Pairs, what: str, split: Split = "train") -> tuple[ContrastPair, ...]:
    """The pairs of whatever holds pairs: a set, or any iterable of ``ContrastPair``s, tuples (prompt, positive, negative)
    or (positive, negative), or dicts with these keys.

    split: which of a set's; dicts of the other one are left out. what: who asks, for errors. Raises TypeError or ValueError for what is no pair, by its number; ValueError for none.
    """
    pairs: Any = getattr(given, split) if isinstance(given, ContrastSet) else given
    if not are_many(pairs):
        raise TypeError(
            f"{what} takes a contrast set or an iterable of pairs, got {type(pairs).__name__}; one pair is [pair], a "
            "file or a shipped set is steerfast.contrast.load(name), a frame its rows: frame.to_dict('records')"
        )
    made = [_pair(one, f"pair {number}") for number, one in enumerate(pairs, 1)]
    kept = tuple(pair for pair, of in made if of in (split, None))
    if not kept:
        raise ValueError(f"{what} needs at least one pair of split {split!r}")
    return kept


def preferences(given: Pairs, what: str, split: Split = "train") -> tuple[ContrastPair, ...]:
    """``as_pairs`` where one continuation is to be preferred over another: ValueError for pairs with two prompts."""
    pairs = as_pairs(given, what, split)
    for number, pair in enumerate(pairs, 1):
        if pair.sides[0][0] != pair.sides[1][0]:
            raise ValueError(
                f"pair {number} has two prompts, so that its continuations have no odds; {what} takes pairs of one prompt"
            )
    return pairs


def _pair(entry: object, where: str) -> tuple[ContrastPair, Split | None]:
    """A pair, and the split that it belongs to, if it says one."""
    if isinstance(entry, ContrastPair):
        return entry, None
    if isinstance(entry, (tuple, list)) and len(entry) in (2, 3):
        entry = dict(zip(("prompt", "positive", "negative")[-len(entry) :], entry, strict=True))
    if not isinstance(entry, Mapping):
        raise TypeError(
            f"{where} is {entry!r:.80}; a pair is an object with prompt, positive and negative, or a list (prompt, "
            "positive, negative) or (positive, negative)"
        )
    row = dict(entry)
    no_other_keys(where, row, set(_KEYS))
    for name in ("positive", "negative"):
        if name not in row:
            raise ValueError(
                f"{where} lacks {name!r}; a pair has prompt, positive, negative, and split train or held_out"
            )
    split: Split | None = None
    if "split" in row:
        split = row.pop("split")
        if split not in ("train", "held_out"):
            raise ValueError(f"{where} has split {split!r}; known: train, held_out")
    parts = {
        name: as_prompt(value, f"{name!r} of {where}")
        for name, value in row.items()
        if name != "negative_prompt" or value is not None
    }
    return ContrastPair(**{"prompt": "", **parts}), split
