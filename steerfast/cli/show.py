"""``steerfast env``, ``operators``: what there is."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, emit, load, paper
from steerfast.cli.options import DtypeOption, JsonFlag


@app.command()
def env(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also say how this model's layers would be steered."),
    ] = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Which backends exist here, why the others do not, and the versions that matter."""
    from steerfast.cli.environment import describe, describe_model

    facts, out = describe(), paper(json_)
    if model is not None:
        facts["model"] = describe_model(load(model, dtype))
    table = Table(
        "backend",
        "",
        "detail",
        title=f"steerfast {facts['versions']['steerfast']}",
        title_justify="left",
    )
    for status in facts["backends"]:
        table.add_row(status["name"], "yes" if status["available"] else "no", status["detail"])
    out.print(table)
    out.print(
        "auto: " + ", ".join(f"{backend} on {device}" for device, backend in facts["auto"].items())
    )
    for name, value in facts["versions"].items():
        out.print(f"  {name:<14}{value}", highlight=False)
    out.print(f"  {'built':<14}{facts['build']}", highlight=False)
    if model is not None:
        _show_model(out, facts["model"])
    emit(json_, facts)


def _show_model(out: Console, facts: dict[str, Any]) -> None:
    line = f"{facts['name']}: {facts['decoder']}, by {facts['by']}: {'; '.join(facts['summary'])}"
    out.print(Text(line), soft_wrap=True)


@app.command()
def operators(json_: JsonFlag = False) -> None:
    """What a term can do: each operator's formula and the fields it takes."""
    from steerfast.plans.operators import OPERATORS

    table, out = Table("operator", "adds to h", "needs", "takes"), paper(json_)
    for name, takes in OPERATORS.items():
        table.add_row(
            name, Text(takes.formula), ", ".join(takes.required), ", ".join(takes.optional)
        )
    out.print(table)
    out.print("p = <h, v̂>, n = |h|, v̂ = v/|v|, c = coefficient, t = target; any term takes a gate")
    emit(json_, {name: takes.formula for name, takes in OPERATORS.items()})
