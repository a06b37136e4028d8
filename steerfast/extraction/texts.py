"""Corpora from files: the texts below a folder, or the texts of one file, by what it is.

JSON, JSONL and CSV hold a text a row (``steerfast.extraction.samples.as_text_or_messages``). In a text file blank lines
stand between texts; where there are none, every line is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from steerfast.extraction.folder import texts_below
from steerfast.extraction.text_rows import texts_in_rows
from steerfast.io.rows import ENDINGS, is_row, lines_of
from steerfast.models.tokens import Prompt


def read_texts(path: str | Path, limit: int | None = None) -> Iterator[Prompt]:
    """The texts (or chat messages) of a corpus: the files of text below a folder (``folder``), or the rows, blocks or
    lines of one file.

    Read lazily. Raises FileNotFoundError, or ValueError, with file and line, where there is no text.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no corpus at {path}")
    texts = islice(_texts(path), limit)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{path} holds no text")
    yield first
    yield from texts


def count_texts(path: str | Path, limit: int | None = None) -> int:
    """How many texts ``read_texts`` will give."""
    return sum(1 for _ in read_texts(path, limit))


def _texts(path: Path) -> Iterator[Prompt]:
    if path.is_dir():
        yield from texts_below(path)
    elif path.suffix.lower() in ENDINGS:
        yield from texts_in_rows(path)
    else:
        yield from _blocks(path) if _has_blocks(path) else _each_line(path)


def _has_blocks(path: Path) -> bool:
    """Whether a blank line stands between two others."""
    begun = ended = False
    for number, line in lines_of(path):
        if not begun and line.lstrip().startswith("{") and is_row(line):
            raise ValueError(f"{path}, line {number}, is a row of JSON; call the file .jsonl")
        if line.strip():
            if ended:
                return True
            begun = True
        else:
            ended = begun
    return False


def _each_line(path: Path) -> Iterator[str]:
    return (line.strip() for _, line in lines_of(path) if line.strip())


def _blocks(path: Path) -> Iterator[str]:
    block: list[str] = []
    for _, line in lines_of(path):
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block).strip()
            block = []
    if block:
        yield "".join(block).strip()
