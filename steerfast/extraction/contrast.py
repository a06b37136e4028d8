"""Contrast sets: prompts with two continuations, one for each pole of a direction.

The shipped sets (``steerfast/data``) were written for this project. ``train`` pairs make the vector,
``held_out`` pairs, on other subjects, measure it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class ContrastPair:
    """``prompt + positive`` against ``prompt + negative``; continuations carry their own leading space."""

    prompt: str
    positive: str
    negative: str


@dataclass(frozen=True)
class ContrastSet:
    """A named direction by example; ``positive`` and ``negative`` say what its poles are."""

    name: str
    positive: str
    negative: str
    description: str
    train: tuple[ContrastPair, ...]
    held_out: tuple[ContrastPair, ...]


def shipped() -> tuple[str, ...]:
    """The names of the contrast sets that come with the package."""
    folder = files("steerfast") / "data"
    return tuple(
        sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".json"))
    )


def load(name_or_path: str | Path) -> ContrastSet:
    """A shipped set by name, or a JSON file of the same structure.

    Raises ValueError for an unknown name, or for a pair without prompt, positive and negative.
    """
    path = Path(name_or_path)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(name_or_path) in shipped():
        text = (files("steerfast") / "data" / f"{name_or_path}.json").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"no contrast set {str(name_or_path)!r}; give a JSON file, or one of {', '.join(shipped())}"
        )
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"{name_or_path} is not a contrast set: a JSON object with a list 'pairs'")
    splits: dict[str, list[ContrastPair]] = {"train": [], "held_out": []}
    for number, pair in enumerate(data.get("pairs", ()), 1):
        try:
            made = ContrastPair(pair["prompt"], pair["positive"], pair["negative"])
        except KeyError as error:
            raise ValueError(
                f"pair {number} of {name_or_path} lacks {error}; a pair has prompt, positive, negative, "
                "and split train or held_out"
            ) from error
        split = pair.get("split", "train")
        if split not in splits:
            raise ValueError(
                f"pair {number} of {name_or_path} has split {split!r}; known: train, held_out"
            )
        splits[split].append(made)
    if not splits["train"]:
        raise ValueError(f"{name_or_path} holds no pairs to extract from")
    return ContrastSet(
        data.get("name", path.stem),
        data.get("positive", "positive"),
        data.get("negative", "negative"),
        data.get("description", ""),
        tuple(splits["train"]),
        tuple(splits["held_out"]),
    )
