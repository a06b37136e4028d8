"""``steerfast env``, ``operators``, ``demo``: what there is, and that it works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import (
    DtypeOption,
    JsonFlag,
    ModelOption,
    app,
    emit,
    load,
    screen,
    stages,
)


@app.command()
def env(json_: JsonFlag = False) -> None:
    """Which backends exist here, why the others do not, and the versions that matter."""
    from steerfast.cli.environment import describe

    facts = describe()
    table = Table(
        "backend",
        "",
        "detail",
        title=f"steerfast {facts['versions']['steerfast']}",
        title_justify="left",
    )
    for status in facts["backends"]:
        table.add_row(status["name"], "yes" if status["available"] else "no", status["detail"])
    screen.print(table)
    screen.print(
        "auto: " + ", ".join(f"{backend} on {device}" for device, backend in facts["auto"].items())
    )
    for name, value in facts["versions"].items():
        screen.print(f"  {name:<14}{value}", highlight=False)
    screen.print(f"  {'built':<14}{facts['build']}", highlight=False)
    emit(json_, facts)


@app.command()
def operators(json_: JsonFlag = False) -> None:
    """What a term can do: each operator's formula and the fields it takes."""
    from steerfast.plans.operators import OPERATORS

    table = Table("operator", "adds to h", "needs", "takes")
    for name, takes in OPERATORS.items():
        table.add_row(
            name, Text(takes.formula), ", ".join(takes.required), ", ".join(takes.optional)
        )
    screen.print(table)
    screen.print(
        "p = <h, v̂>, n = |h|, v̂ = v/|v|, c = coefficient, t = target; any term takes a gate"
    )
    emit(json_, {name: takes.formula for name, takes in OPERATORS.items()})


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
    quick: Annotated[bool, typer.Option(help="A smoke test: fewer pairs and steps.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Extract, steer and measure on a real model: generations, dose-response, decode speed."""
    from steerfast.experiments import demo as experiment
    from steerfast.experiments.plots import plot_dose_response
    from steerfast.io import save_vector

    loaded = load(model, dtype)
    with stages() as stage:
        result = experiment.run(loaded, stage, direction=direction, quick=quick)
    assert result.ms_per_token is not None
    paths = {
        name: str(save_vector(v, out / f"{name}.safetensors")) for name, v in result.vectors.items()
    }
    title = f"{result.model}, layer {result.layer} steered"
    paths["plot"] = str(plot_dose_response(result.dose_response, title, out / "dose_response.svg"))

    table = Table(
        "coefficient", "text", title=f"{direction}, layer {result.layer}", show_lines=True
    )
    for row in result.generations:
        if row["coefficient"] == experiment.GENERATION_COEFFICIENTS[0]:
            table.add_row("[dim]prompt[/dim]", Text(row["prompt"], "bold"))
        table.add_row(
            f"{row['coefficient']:+.2f}" if row["coefficient"] else "unsteered", Text(row["text"])
        )
    screen.print(table)
    curves = Table(
        "direction", *[f"{c:+.2f}" for c, _, _ in next(iter(result.dose_response.values()))]
    )
    curves.title = "effect on held-out pairs, nats (random control below)"
    for name, points in result.dose_response.items():
        curves.add_row(name, *[f"{point.effect:+.2f}" for point in points])
        curves.add_row("", *[f"[dim]{point.control:+.2f}[/dim]" for point in points])
    screen.print(curves)
    speed = result.ms_per_token
    screen.print(
        f"decode, ms per token: stock {speed.stock:.2f}, patched {speed.patched:.2f}, "
        f"steered at every layer {speed.steered:.2f} (medians of {speed.steps} interleaved steps)"
    )
    screen.print(Text(f"vectors and plot: {out}/"))
    emit(
        json_,
        {
            "model": result.model,
            "layer": result.layer,
            "generations": result.generations,
            "dose_response": {
                name: [list(p) for p in points] for name, points in result.dose_response.items()
            },
            "ms_per_token": {
                "stock": speed.stock,
                "patched": speed.patched,
                "steered": speed.steered,
            },
            "steps": speed.steps,
            "paths": paths,
        },
    )
