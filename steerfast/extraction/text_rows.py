"""Texts in the rows of a file: JSON, JSONL or CSV, a text (or chat messages) a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from steerfast.extraction.samples import as_text_or_messages
from steerfast.io.rows import ENDINGS, LINES, rows_of
from steerfast.models.tokens import Prompt


def texts_in_rows(path: Path) -> Iterator[Prompt]:
    """Each row's text; ValueError, with file and line, for one that has none."""
    _, rows = rows_of(path, "texts")
    for number, row in enumerate(rows, 1):
        try:
            yield as_text_or_messages(row.value, f"text {number} of {row.place}")
        except TypeError as error:
            raise ValueError(str(error)) from error


def holds_rows(path: Path) -> bool:
    """Whether a file among others is rows of texts: JSONL is; JSON and CSV are where the first row is a text, as they may
    be what somebody's code reads."""
    ending = path.suffix.lower()
    if ending in LINES:
        return True
    if ending not in ENDINGS:
        return False
    try:
        return next(texts_in_rows(path), None) is not None
    except ValueError:
        return False
