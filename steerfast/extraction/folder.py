"""The texts of a folder: its files that are text, told by what is in them, not by their names."""

from __future__ import annotations

import codecs
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from steerfast.extraction.text_rows import holds_rows, texts_in_rows
from steerfast.models.tokens import Prompt

LOOKED_AT = 8192  # bytes from the front
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\b\x1b")
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def texts_below(folder: Path) -> Iterator[Prompt]:
    """Every file below a folder as one text, or as the texts in its rows (``text_rows``), in the order of their paths;
    files without any text give none.

    Left out: what is hidden (its name, or that of a folder around it, begins with a dot), and files that are no text: a
    picture, a compiled module. A warning says how many were read and which were not. Raises ValueError for a file of text
    that is not UTF-8 and for a row without a text, naming it and the place.
    """
    files, hidden = _files(folder)
    texts = [file for file in files if not _is_binary(file)]
    others = [str(file.relative_to(folder)) for file in files if file not in set(texts)]
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{folder}: {len(texts)} files read as texts; left out {len(others)} that are no text ({some})"
            + (f", {hidden} hidden" if hidden else ""),
            stacklevel=1,
        )
    for file in texts:
        if holds_rows(file):
            yield from _rows(file)
            continue
        text = _decoded(file).strip()
        if text:
            yield text


def _files(folder: Path) -> tuple[list[Path], int]:
    """(the files that are not hidden, how many files and folders are)."""
    found: list[Path] = []
    hidden = 0
    for place, folders, names in os.walk(folder):
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.is_file()]
    return sorted(found), hidden


def _is_binary(file: Path) -> bool:
    """Whether its front holds a zero, or control characters that no text does. Text in UTF-16 has zeros, and is text."""
    with file.open("rb") as opened:
        front = opened.read(LOOKED_AT)
    if front.startswith(_OTHER_UNICODE):
        return False
    return any(byte in _CONTROL for byte in front)


def _rows(file: Path) -> Iterator[Prompt]:
    try:
        yield from texts_in_rows(file)
    except ValueError as error:
        raise ValueError(
            f"{error}; if it is no part of the corpus, take it out of the folder"
        ) from error


def _decoded(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is text, but not in UTF-8 ({error.reason} at byte {error.start}); convert it (iconv -t utf-8), or "
            "take it out of the folder"
        ) from error
