"""The command line.

Progress and tables go to stderr; with ``--json`` the last line of stdout is one JSON object, without it results go to
stdout as text.
"""

from __future__ import annotations

import sys

from rich.text import Text

from steerfast.cli import demo, show, steering, study, tune
from steerfast.cli.console import app, screen
from steerfast.cli.quiet import silence_notes
from steerfast.errors import SteerfastError

__all__ = ["app", "demo", "main", "show", "steering", "study", "tune"]


def main() -> None:
    """Entry point: expected errors become one line and exit status 1."""
    silence_notes()
    try:
        app()
    except (SteerfastError, ValueError, OSError) as error:
        screen.print(Text.assemble(("error: ", "red"), str(error)))
        sys.exit(1)
