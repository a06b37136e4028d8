"""``steerfast demo``: a direction found, followed and measured on a real model, each part shown as soon as it is there."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from steerfast.cli.console import app, emit, load, paper, screen, stages
from steerfast.cli.options import DtypeOption, JsonFlag, ModelOption

if TYPE_CHECKING:
    from steerfast.experiments.dose import DosePoint


@app.command()
def demo(
    model: ModelOption = None,
    dtype: DtypeOption = None,
    direction: Annotated[
        str, typer.Option(help="Shipped direction to show generations of.")
    ] = "sentiment",
    out: Annotated[Path, typer.Option(help="Folder for vectors and plot.")] = Path(
        "steerfast-demo"
    ),
    full: Annotated[
        bool,
        typer.Option("--full", help="All shipped directions, more doses, and the time of a step."),
    ] = False,
    quick: Annotated[bool, typer.Option(help="A smoke test: fewer pairs and steps.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Extract a direction, steer a real model along it, measure what that does.

    With --json: model, layer, generations, dose_response, paths; with --full also ms_per_token and steps.
    """
    from steerfast import contrast
    from steerfast.experiments import demo as experiment
    from steerfast.experiments.dose import COEFFICIENTS
    from steerfast.experiments.dose_plot import plot_dose_response
    from steerfast.io import save_vector

    shown = paper(json_)
    run = experiment.Demo(load(model, dtype), direction, full=full, quick=quick)
    chosen = run.sets[direction]
    _say(
        shown,
        f"1. A direction. {len(run.train(direction))} beginnings of a text, each ended in two ways: {chosen.positive}; "
        f"{chosen.negative}. What differs on average between the two in the model's residual stream is the "
        f"direction {direction!r}.",
    )
    with stages() as stage:
        run.extract([direction], stage)
    paths = {direction: str(save_vector(run.vectors[direction], out / f"{direction}.safetensors"))}
    _say(
        shown,
        f"2. Steering. Each prompt is continued three times in one batch: pushed against the direction, left alone, "
        f"pushed along it, at layer {run.layer} by {run.setting.push:g} of the stream's length. The same weights and prompt; "
        "only the push differs. So strong a push on so small a model costs some sense.",
    )
    generations = []
    for prompt in run.prompts:
        with screen.status("generating"):
            rows = run.generate(prompt)
        generations += rows
        _show_generations(shown, rows)
    others = [name for name in run.sets if name not in run.vectors]
    with stages() as stage:
        if others:
            run.extract(others, stage)
            for name in others:
                paths[name] = str(save_vector(run.vectors[name], out / f"{name}.safetensors"))
        curves = run.measure(stage)
    _say(
        shown,
        f"3. Dose and response. On {len(run.held_out(direction))} pairs that were not used before: how much likelier, "
        "in nats, the first kind of ending becomes against the second. It grows with the push and turns with its "
        "sign; a random direction of the same length (the row below) does little.",
    )
    _show_curves(shown, curves)
    title = f"{run.name}, layer {run.layer} steered"
    paths["plot"] = str(plot_dose_response(curves, title, out / "dose_response.svg"))
    facts: dict[str, Any] = {
        "model": run.name,
        "layer": run.layer,
        "generations": generations,
        "dose_response": {name: [list(p) for p in points] for name, points in curves.items()},
    }
    if full:
        with stages() as stage:
            speed = run.time(stage)
        _say(
            shown,
            "4. Speed. The time of a decode step of one row, steered at every layer, next to the model as it comes. "
            "The steps take turns, so that a busy machine slows all alike.",
        )
        shown.print(
            f"ms per token: stock {speed.stock:.2f}, patched {speed.patched:.2f}, steered "
            f"{speed.steered:.2f} (medians of {speed.steps} steps)"
        )
        facts["ms_per_token"] = {
            "stock": speed.stock,
            "patched": speed.patched,
            "steered": speed.steered,
        }
        facts["steps"] = speed.steps
    else:
        _say(
            shown,
            f"One direction and {len(run.setting.coefficients(False))} doses; --full takes all "
            f"{len(contrast.shipped())} directions, {len(COEFFICIENTS)} doses, and times a step.",
        )
    _say(shown, f"Vectors and plot: {out}/. Try next:")
    commands = next_commands(
        paths[direction], run.layer, model, full, push=run.setting.push, prompt=run.prompts[0]
    )
    for command in commands:
        shown.print(Text("  " + command), soft_wrap=True)
    emit(json_, {**facts, "paths": paths})


def next_commands(
    vector: str,
    layer: int,
    model: str | None,
    full: bool,
    *,
    push: float = 0.2,
    prompt: str = "Tell me about your day.",
) -> list[str]:
    """Three commands that work as printed, where the demo was run."""
    program, on_path = sys.argv[0], shutil.which("steerfast")
    if Path(program).name != "steerfast" or (on_path and Path(program).samefile(on_path)):
        program = "steerfast"
    on = [] if model is None else ["--model", model]
    commands = [
        ["generate", prompt, "-v", f"{vector}:{push:g}:{layer}", "--scale", "stream", *on],
        ["generate", prompt, "-v", f"{vector}:1:{layer}", "--operator", "ablate", *on],
        ["demo", "--direction", "formality", *on] if full else ["demo", "--full", *on],
    ]
    return [shlex.join([program, *one]) for one in commands]


def _say(shown: Console, text: str) -> None:
    shown.print()
    shown.print(Text(text))


def _show_generations(shown: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("push", Column(Text(rows[0]["prompt"])), show_lines=True)
    for row in rows:
        push = _dose(row["coefficient"]) if row["coefficient"] else "unsteered"
        table.add_row(push, Text(row["text"]))
    shown.print(table)


def _show_curves(shown: Console, curves: Mapping[str, Sequence[DosePoint]]) -> None:
    table = Table("push", *[_dose(point.coefficient) for point in next(iter(curves.values()))])
    for name, points in curves.items():
        table.add_row(name, *[f"{point.effect:+.2f}" for point in points])
        table.add_row(
            "[dim]random[/dim]", *[f"[dim]{point.control:+.2f}[/dim]" for point in points]
        )
    shown.print(table)


def _dose(coefficient: float) -> str:
    """With two digits behind the point, or as many as it has."""
    return max(f"{coefficient:+.2f}", f"{coefficient:+g}", key=len)
