"""What all commands share: the application, progress bars, output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steerfast.cli.quiet import silence_bars

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Activation steering fused into the residual stream of the decoders of transformers.",
)
screen = Console(stderr=True)  # progress, notes, errors
_stdout = Console()


def paper(as_json: bool) -> Console:
    """Where results go as text: stdout, which ``--json`` keeps for its one line."""
    return screen if as_json else _stdout


@contextmanager
def stages() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars, one per stage, on stderr."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen) as progress:

        def stage(what: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(what, total=steps)
            return lambda: progress.advance(task)

        yield stage


def load(name: str | None, dtype: str | None) -> Any:
    import torch

    from steerfast.models.load import load_model

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in known:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(known)}")
    with screen.status("loading the model"):
        silence_bars()
        return load_model(name, dtype=known[dtype] if dtype else None)


def emit(as_json: bool, data: dict[str, Any]) -> None:
    """The line of ``--json``; a number that is not finite is null, since JSON has no other."""
    if as_json:
        print(json.dumps(_finite(data), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counter(step: Callable[[], None]) -> Callable[[int], None]:
    """A progress callback that is given totals, from one that is called once per item."""
    seen = 0

    def update(done: int) -> None:
        nonlocal seen
        for _ in range(done - seen):
            step()
        seen = done

    return update
