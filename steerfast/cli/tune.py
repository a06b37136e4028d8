"""``steerfast tune``: the strongest steering that a budget allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, emit, load, screen, stages
from steerfast.cli.options import DtypeOption, JsonFlag, ModelOption


@app.command()
def tune(
    behaviour: Annotated[str, typer.Argument(help="One of the preset's behaviours.")],
    budget: Annotated[
        float, typer.Option(help="Share of top-1 accuracy on text that may be lost.")
    ] = 0.02,
    away: Annotated[
        bool, typer.Option("--away", help="Steer away from the behaviour instead of towards it.")
    ] = False,
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="Its model, questions and grid.")
    ] = "smollm2",
    data: Annotated[
        Path | None, typer.Option(help="Folder of questions; default the set that ships.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Text for capability: file, folder or prose.")
    ] = "prose",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of trials; that of `study behaviours` saves the grid."
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Write the best plan here, as JSON.")] = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Pick layer and coefficient for one behaviour, within a budget of capability."""
    from steerfast.experiments.config import load_preset
    from steerfast.experiments.corpora import read_corpus
    from steerfast.experiments.measure import Laboratory
    from steerfast.experiments.study import Study, prepare_behaviours
    from steerfast.experiments.tune import described
    from steerfast.experiments.tune import tune as search
    from steerfast.io import save_plan

    if not 0 <= budget < 1:
        raise ValueError(f"budget is a share of accuracy, at least 0 and below 1, got {budget}")
    chosen = load_preset(preset)
    config = chosen.behaviours
    if config is None or behaviour not in config.behaviours:
        known = ", ".join(config.behaviours) if config else "none"
        raise ValueError(f"preset {chosen.name} has no behaviour {behaviour!r}; known: {known}")
    folder = out or Path(f"study-behaviours-{chosen.name}")
    laboratory = Laboratory(load(model or chosen.model, dtype or chosen.dtype))
    with stages() as stage:
        study = Study(laboratory, folder, stage)
        prepared = prepare_behaviours(study, config, data, read_corpus(text), only=(behaviour,))
        assert prepared.text is not None
        found = search(
            laboratory,
            config,
            behaviour,
            prepared.splits[behaviour],
            prepared.vectors[behaviour],
            prepared.text,
            study.trials,
            stage,
            sign=-1 if away else 1,
            budget=budget,
        )
    table = Table(
        "layer",
        "coefficient",
        "effect, nats",
        "top-1 lost",
        "",
        title="trade-off front",
        title_justify="left",
    )
    for one in found.front:
        mark = "best within the budget" if one == found.best else ""
        cells = (str(one.layer), f"{one.coefficient:+g}", f"{one.effect:.3f}", f"{one.lost:.1%}")
        table.add_row(*cells, mark)
    (screen if json_ else Console()).print(table)
    written = None
    if found.plan is None:
        screen.print(
            f"no point of the grid moves {behaviour} the wanted way within {budget:.1%}; "
            "raise --budget, or try smaller coefficients in a preset of your own"
        )
    elif plan is not None:
        written = str(save_plan(found.plan, plan))
        screen.print(Text(f"plan: {written}"))
    emit(json_, {"behaviour": behaviour, "budget": budget, "plan": written, **described(found)})
