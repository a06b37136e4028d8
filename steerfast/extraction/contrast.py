"""Contrast sets: prompts with two continuations, one for each pole of a direction.

The shipped sets (``steerfast/data``) were written for this project. ``train`` pairs make the vector,
``held_out`` pairs, on other subjects, measure it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from os.path import isfile
from pathlib import Path

from steerfast.io.strict import as_list, as_object, as_text, parse


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
    if isfile(path):
        text = path.read_bytes()
    elif str(name_or_path) in shipped():
        text = (files("steerfast") / "data" / f"{name_or_path}.json").read_bytes()
    else:
        raise ValueError(
            f"no contrast set {str(name_or_path)!r}; give a JSON file, or one of {', '.join(shipped())}"
        )
    data = as_object(parse(text, f"contrast set {name_or_path}"), f"contrast set {name_or_path}")
    splits: dict[str, list[ContrastPair]] = {"train": [], "held_out": []}
    for number, pair in enumerate(as_list(data.get("pairs"), f"'pairs' of {name_or_path}"), 1):
        made, split = _pair(pair, f"pair {number} of {name_or_path}")
        splits[split].append(made)
    if not splits["train"]:
        raise ValueError(f"{name_or_path} holds no pairs to extract from")
    default = {"name": path.stem, "positive": "positive", "negative": "negative", "description": ""}
    facts = {
        name: as_text(data.get(name, text), f"{name!r} of {name_or_path}")
        for name, text in default.items()
    }
    return ContrastSet(**facts, train=tuple(splits["train"]), held_out=tuple(splits["held_out"]))


def _pair(entry: object, where: str) -> tuple[ContrastPair, str]:
    """A pair, and the split that it belongs to."""
    pair = as_object(entry, where)
    parts = []
    for name in ("prompt", "positive", "negative"):
        if name not in pair:
            raise ValueError(
                f"{where} lacks {name!r}; a pair has prompt, positive, negative, and split train or held_out"
            )
        parts.append(as_text(pair[name], f"{name!r} of {where}"))
    split = pair.get("split", "train")
    if split not in ("train", "held_out"):
        raise ValueError(f"{where} has split {split!r}; known: train, held_out")
    return ContrastPair(*parts), split
