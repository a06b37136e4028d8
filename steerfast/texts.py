"""What the command line's arguments mean: corpora from files, layer lists, vectors with coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from steerfast.extract import Position
from steerfast.io import load_vector
from steerfast.operators import OPERATORS
from steerfast.plan import Plan
from steerfast.term import Term


def read_texts(path: Path, limit: int | None = None) -> Iterator[str]:
    """The texts of a corpus: every file below a folder (sorted), or the blank-line-separated blocks of
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
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            if text:
                yield text
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


def parse_layers(text: str) -> tuple[int, ...]:
    """``10,15`` or ``8-12`` or both: the layers, ascending. ValueError otherwise."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            layers.update(range(int(first), int(last) + 1) if dash else [int(first)])
        except ValueError as error:
            raise ValueError(f"layers are written like 10,15 or 8-12, not {text!r}") from error
    if not layers:
        raise ValueError(f"layers {text!r} name no layer")
    return tuple(sorted(layers))


def parse_position(text: str) -> Position:
    """``last``, ``mean`` or an index. ValueError otherwise."""
    if text == "last":
        return "last"
    if text == "mean":
        return "mean"
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"a position is last, mean or a token index, not {text!r}") from error


def parse_vectors(
    texts: Sequence[str],
    scale: Any = None,
    select: Any = "all",
    finish: Any = "none",
    operator: Any = "add",
) -> Plan:
    """A plan from ``FILE:NUMBER[:LAYERS]`` arguments; options as in ``Term`` and ``Plan``.

    NUMBER is the term's coefficient, or the target of clamp, floor and ceiling. ``scale`` is for ``add``
    alone, by default ``stream``. ValueError for anything else, or an operator that needs more than a number.
    """
    takes = OPERATORS.get(operator)
    if takes is not None and not set(takes.required) <= {"target"}:
        raise ValueError(
            f"operator {operator!r} needs {', '.join(takes.required)}; write it as a plan and give --plan"
        )
    number = "target" if takes is not None and takes.required else "coefficient"
    options: dict[str, Any] = {"select": select, "operator": operator}
    if scale is not None or operator == "add":
        options["scale"] = scale or "stream"
    terms = []
    for text in texts:
        parts = text.split(":")
        if len(parts) not in (2, 3):
            raise ValueError(f"a vector is given as FILE:NUMBER[:LAYERS], not {text!r}")
        try:
            value = float(parts[1])
        except ValueError as error:
            raise ValueError(f"{parts[1]!r} in {text!r} is no {number}; write a number") from error
        layers = parse_layers(parts[2]) if len(parts) == 3 else None
        given: dict[str, Any] = {number: value, **options}
        terms.append(Term(load_vector(parts[0]), layers=layers, **given))
    return Plan(tuple(terms), finish)
