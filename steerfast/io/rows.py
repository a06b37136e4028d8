"""Rows of a data file, each with the line where it begins: JSON, JSONL or CSV, by what the file is.

JSON is a list of rows, or an object that holds them under a key; JSONL has a row a line, and is known by its first line
where it is called ``.json``; CSV (``,``, ``;`` or tab) has the names of its columns in the first line, and an empty cell
says nothing. What is wrong is a ValueError with the file and the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steerfast.io.strict import as_list, as_object, no_other_keys, parse

LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
ENDINGS = (".json", *LINES, *TABLES)
_SPACE = re.compile(r"[ \t\n\r]*")


class Row(NamedTuple):
    """value: what stands there. place: the file and the line, for errors."""

    value: Any
    place: str


def rows_of(path: Any, key: str, facts: Iterable[str] = ()) -> tuple[dict[str, Any], Iterator[Row]]:
    """(facts, rows) of a file: of a JSON object, what stands beside the rows at ``key``; of anything else, nothing.

    path: a Path, or a file of a package. facts: the keys that may stand there. JSONL and CSV are read as they are asked
    for, so that errors of a row come with it.
    """
    name, ending = str(path), Path(path.name).suffix.lower()
    if ending in TABLES:
        return {}, _table(lines_of(path), name, "\t" if ending == ".tsv" else None)
    if ending in LINES:
        return {}, _each_line(lines_of(path), name)
    text = "".join(line for _, line in lines_of(path))
    if _is_lines(text):
        return {}, _each_line(enumerate(text.split("\n"), 1), name)
    data = parse(text, name)
    if isinstance(data, list):
        return {}, _placed(data, text, name, None)
    data = as_object(data, name)
    rows = as_list(data.get(key), f"{key!r} of {name}")
    beside = {known: value for known, value in data.items() if known != key}
    no_other_keys(name, beside, set(facts))
    return beside, _placed(rows, text, name, key)


def lines_of(path: Any) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file in UTF-8, one after the other; a byte order mark is none of it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, is text in UTF-8, but this is not: {error}"
                ) from None


def is_row(line: str) -> bool:
    """Whether a line is a whole JSON object or list."""
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return False


def _is_lines(text: str) -> bool:
    """Whether the first line is a row by itself, and others follow."""
    first, _, rest = text.strip().partition("\n")
    return bool(rest) and is_row(first)


def _each_line(lines: Iterable[tuple[int, str]], name: str) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            yield Row(parse(line, f"{name}, line {number},"), f"{name} (line {number})")


def _table(lines: Iterator[tuple[int, str]], name: str, delimiter: str | None) -> Iterator[Row]:
    number, header = next(lines, (1, ""))
    while not header.strip() and (following := next(lines, None)):
        number, header = following
    if delimiter is None:
        delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    before = number - 1

    def fed() -> Iterator[str]:
        yield header
        for _, line in lines:
            yield line

    reader = csv.reader(fed(), delimiter=delimiter, strict=True)
    columns: list[str] = []
    begins = number
    try:
        for cells in reader:
            place = f"{name} (line {begins})"
            begins = before + reader.line_num + 1
            if not columns:
                columns = [cell.strip() for cell in cells]
                twice = {column for column in columns if columns.count(column) > 1}
                if twice:
                    raise ValueError(f"{place} names the column {twice.pop()!r} twice")
                continue
            if cells and len(cells) != len(columns):
                raise ValueError(
                    f"{place} has {len(cells)} cells, but the first line names {len(columns)} columns "
                    f"({', '.join(columns)[:80]}); a cell that holds {delimiter!r} is written in quotes"
                )
            if any(cells):
                found = zip(columns, cells, strict=True)
                yield Row({column: cell for column, cell in found if cell}, place)
    except csv.Error as error:
        raise ValueError(f"{name} (line {begins}) is no CSV: {error}") from error


def _placed(rows: list[Any], text: str, name: str, key: str | None) -> Iterator[Row]:
    """The rows of a JSON text that has been read, with the lines where they begin."""
    decoder, at, line, counted = json.JSONDecoder(), _skip(text, 0) + 1, 1, 0
    while key is not None:  # past the object's other keys, up to the list
        known, at = decoder.raw_decode(text, _skip(text, at))
        at = _skip(text, _skip(text, at) + 1)
        if known == key:
            at += 1
            break
        _, at = decoder.raw_decode(text, at)
        at = _skip(text, at) + 1
    for row in rows:
        at = _skip(text, at)
        line, counted = line + text.count("\n", counted, at), at
        yield Row(row, f"{name} (line {line})")
        _, at = decoder.raw_decode(text, at)
        at = _skip(text, at) + 1


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()
