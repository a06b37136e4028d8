"""Corpora from files: the texts below a folder, or the blocks of one file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from steerfast.extraction.folder import texts_below


def read_texts(path: Path, limit: int | None = None) -> Iterator[str]:
    """The texts of a corpus: the files of text below a folder (``folder``), or the blank-line-separated blocks of
    one file. Read lazily. Raises FileNotFoundError, or ValueError where there is no text."""
    if not path.exists():
        raise FileNotFoundError(f"no corpus at {path}")
    texts = islice(_texts(path), limit)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{path} holds no text")
    yield first
    yield from texts


def count_texts(path: Path, limit: int | None = None) -> int:
    """How many texts ``read_texts`` will give."""
    return sum(1 for _ in read_texts(path, limit))


def _texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from texts_below(path)
        return
    block: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block).strip()
                block = []
    if block:
        yield "".join(block).strip()
