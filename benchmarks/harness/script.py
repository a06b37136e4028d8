"""What every script has in common on the command line: its options, and how it ends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from harness.machine import device_name, setting
from harness.results import Line, save


def parser(doc: str, name: str, *, quick: str) -> argparse.ArgumentParser:
    """``--quick`` (what it does then), ``--json`` and ``--save`` (to ``results/<name>.jsonl``). doc: the script's own."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.set_defaults(results=name)
    found.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    found.add_argument("--save", action="store_true", help=f"append to results/{name}.jsonl")
    return found


def keep(arguments: argparse.Namespace, lines: list[Line]) -> None:
    """Appends result lines where ``--save`` asks for it."""
    if arguments.save:
        save(arguments.results, lines)


def kept(arguments: argparse.Namespace, lines: Iterable[Line], seed: int) -> list[Line]:
    """All lines, with the setting; each saved as soon as it is there: a script may be stopped at any moment."""
    found = []
    for line in lines:
        found.append({**line, **setting(seed)})
        keep(arguments, found[-1:])
    return found


def say(arguments: argparse.Namespace, **said: Any) -> None:
    """Prints the object of ``--json``, with the device."""
    if arguments.json:
        print(json.dumps({**said, "device": device_name()}))
