"""TOML from others, read strictly, as ``strict`` reads JSON: whatever is wrong with it is a ValueError that names the file.

The standard reader recurses with brackets, and takes a time of the square of a key's parts: a few KB stop it for a second.
So both are counted before it sees the text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from steerfast.io.strict import DEEPEST, check_values

_PARTS = 16  # of a key: a.b.c has three
# One that does not end goes on to the end of its line, or of the text: so no place is looked at twice.
_QUOTED = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)|\'\'\'.*?(?:\'\'\'|\Z)|"(?:\\.|[^"\\\n])*"?|\'[^\'\n]*\'?|#[^\n]*',
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]+\s*\.\s*){{{_PARTS}}}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table of a file. FileNotFoundError where there is none.

    ValueError for what is not TOML in UTF-8, for more than ``DEEPEST`` levels, keys of more than 16 parts, and numbers
    that no 64 bits hold.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    bare = _QUOTED.sub("s", text)
    if _deepest(bare) > DEEPEST or _LONG_KEY.search(bare):
        raise ValueError(f"{path} is nested too deeply for a configuration")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # integers of thousands of digits are a plain one
        raise ValueError(f"{path} is not TOML: {error}") from None
    check_values(table, str(path))
    return table


def _deepest(text: str) -> int:
    """How many brackets are open at once, at most."""
    depth = most = 0
    for letter in re.findall(r"[\[\]{}]", text):
        depth += 1 if letter in "[{" else -1
        most = max(most, depth)
    return most
