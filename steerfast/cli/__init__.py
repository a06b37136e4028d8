"""The command line.

Results go to stdout, as text, or with ``--json`` as one JSON object in its last line (the text goes to stderr then).
Progress, notes and errors go to stderr. Exit status: 0; 1 for an error that was to be expected, in one line; 2 for a command
that is written wrongly.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from rich.text import Text

from steerfast import __version__
from steerfast.cli import demo, files, inspect_model, show, steering, study, tune
from steerfast.cli.console import app, screen
from steerfast.cli.quiet import silence_notes
from steerfast.errors import SteerfastError

__all__ = ["app", "demo", "files", "inspect_model", "main", "show", "steering", "study", "tune"]


def _version(asked: bool) -> None:
    if asked:
        print(f"steerfast {__version__}")
        raise typer.Exit


@app.callback()
def steerfast(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Activation steering fused into the residual stream of the decoders of transformers."""


def main() -> None:
    """Entry point: expected errors become one line and exit status 1, warnings one line each."""
    silence_notes()
    warnings.showwarning = _one_line(warnings.showwarning)
    try:
        app()
    except (SteerfastError, ValueError, OSError) as error:
        _say("error: ", "red", error)
        sys.exit(1)


def _say(kind: str, colour: str, message: object) -> None:
    """In one line, however many it came in."""
    screen.print(Text.assemble((kind, colour), " ".join(str(message).split())), soft_wrap=True)


def _one_line(usual: Any) -> Any:
    """Warnings for the user without the line of code that gave them; others as ever."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category is UserWarning:
            _say("warning: ", "yellow", message)
        else:
            usual(message, category, *where, **more)

    return show
