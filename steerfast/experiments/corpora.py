"""Text and code to study broad skills on: what ships or is at hand, files and folders, or a dataset of the hub."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from steerfast.extraction.samples import refuse_one_text
from steerfast.extraction.texts import read_texts

SHORTEST = 200  # characters; shorter texts (headings, empty modules) are left out
READ = 20_000  # texts of a source at most


def read_corpus(source: str, limit: int = READ) -> list[str]:
    """The texts of a source, in a fixed order.

    ``prose``: passages written for this project. ``stdlib``: the modules of this Python's standard library.
    ``hub:NAME[:CONFIG[:SPLIT[:FIELD[:WHERE]]]]``: a dataset of the Hugging Face hub, streamed (defaults: its first
    configuration, ``train``, ``text``), of which WHERE keeps some rows: ``meta.pile_set_name=Github``, or ``!=``; needs
    the package ``datasets`` and a connection. Anything else is a file (text,
    JSONL, JSON or CSV) or a folder (a text a file), as ``read_texts`` reads them. Raises ValueError where a source holds no text of 200 characters.
    """
    if source == "prose":
        blocks: Iterator[str] = iter(
            (files("steerfast") / "data" / "prose.txt").read_text("utf-8").strip().split("\n\n")
        )
    elif source == "stdlib":
        blocks = _stdlib()
    elif source.startswith("hub:"):
        blocks = _hub(source)
    else:
        blocks = _plain(source)
    texts = list(islice((text for text in blocks if len(text) >= SHORTEST), limit))
    if not texts:
        raise ValueError(f"corpus {source!r} holds no text of at least {SHORTEST} characters")
    return texts


def split_corpus(
    name: str, texts: Sequence[str], samples: int, seed: int
) -> tuple[list[str], list[str]]:
    """(texts for the vector, texts for measuring), shuffled with a seed and disjoint.

    Half of the texts at most go to the vector. Raises ValueError for fewer than two texts.
    """
    refuse_one_text(texts, f"the corpus {name!r}")
    if len(texts) < 2:
        raise ValueError(
            f"corpus {name!r} holds {len(texts)} text, but needs some for the vector and others to measure on"
        )
    order = list(texts)
    random.Random(seed).shuffle(order)
    first = min(samples, len(order) // 2)
    return order[:first], order[first:]


def _stdlib() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def _plain(source: str) -> Iterator[str]:
    """The texts of a file or folder; ValueError for chat messages, which no broad skill is measured on."""
    for text in read_texts(source):
        if not isinstance(text, str):
            raise ValueError(f"corpus {source!r} holds chat messages; studies read plain text")
        yield text


def _hub(source: str) -> Iterator[str]:
    name, *rest = source.removeprefix("hub:").split(":", 4)
    config, split, field, where = (rest + [""] * 4)[:4]
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"corpus {source!r} needs the package datasets: pip install datasets"
        ) from error
    field = field or "text"
    for row in load_dataset(name, config or None, split=split or "train", streaming=True):
        if field not in row:
            raise ValueError(f"{source!r} has no field {field!r}; it has {', '.join(row)}")
        if not isinstance(row[field], str):
            raise ValueError(f"{source!r} has no text in {field!r}: {row[field]!r:.80}")
        if _kept(row, where):
            yield row[field]


def _kept(row: Any, where: str) -> bool:
    """Whether a row satisfies ``path=value`` or ``path!=value``; the path goes into nested records by dots."""
    if not where:
        return True
    path, sign, value = where.partition("!=") if "!=" in where else where.partition("=")
    if not sign:
        raise ValueError(f"{where!r} is no condition on rows; write path=value or path!=value")
    for part in path.split("."):
        if not isinstance(row, dict) or part not in row:
            raise ValueError(f"a row has no {path!r}, which {where!r} asks for")
        row = row[part]
    return (str(row) == value) == (sign == "=")
