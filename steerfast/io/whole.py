"""Files that appear whole or not at all, under a name that says what they hold."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_suffix(path: str | Path, suffix: str, what: str) -> Path:
    """The path; ValueError for one that names another format than is written. A name without a suffix is taken."""
    path = Path(path)
    if path.suffix not in ("", suffix):
        raise ValueError(
            f"{what} is written as {suffix}, and {path.name!r} names another format; write it to "
            f"{str(path.with_name(path.name + suffix))!r}"
        )
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place at the end; where that fails nothing is left.

    A link stays one. ValueError for a folder or a device, which must not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.resolve()
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} is there and is no file; give the path of one")
    unfinished = place.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        yield unfinished
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
