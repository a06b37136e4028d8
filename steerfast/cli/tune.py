"""``steerfast tune``: the strongest steering that a budget allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, emit, load, paper, screen, stages
from steerfast.cli.options import DtypeOption, JsonFlag, ModelOption

if TYPE_CHECKING:
    from steerfast.experiments.effects import Effect
    from steerfast.experiments.tune import Tuned


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
    save: Annotated[
        Path | None,
        typer.Option(
            "--save-plan", help="Write the best plan here, as JSON; status 1 if there is none."
        ),
    ] = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Pick layer and coefficient for one behaviour, within a budget of capability.

    What is picked is measured again on questions held out, beside random directions, before it is called better than
    chance.
    """
    from steerfast.experiments.claim import check_folder
    from steerfast.experiments.config import load_preset
    from steerfast.experiments.corpora import read_corpus
    from steerfast.experiments.measure import Laboratory
    from steerfast.experiments.study import Study, prepare_behaviours, split_questions
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
    if not config.tax_tokens:
        raise ValueError(
            f"preset {chosen.name} has tax_tokens = 0, but a budget is measured on text"
        )
    # The splits of a behaviour depend on those of all: they are drawn from one stream.
    split = split_questions(config, data)[behaviour]
    texts = read_corpus(text)
    folder = out or Path(f"study-behaviours-{chosen.name}")
    check_folder(folder, {})
    laboratory = Laboratory(load(model or chosen.model, dtype or chosen.dtype))
    with stages() as stage:
        study = Study(laboratory, folder, stage)
        prepared = prepare_behaviours(study, config, {behaviour: split}, texts)
        assert prepared.text is not None
        found = search(
            laboratory,
            config,
            behaviour,
            split,
            prepared.vectors[behaviour],
            prepared.text,
            study.trials,
            stage,
            sign=-1 if away else 1,
            budget=budget,
        )
    shown = paper(json_)
    shown.print(_front(found))
    for line in _findings(found, behaviour, budget):
        shown.print(Text(line), soft_wrap=True)
    written = None
    if found.plan is not None and save is not None:
        written = str(save_plan(found.plan, save))
        shown.print(Text(f"plan: {written}"), soft_wrap=True)
    emit(json_, {"behaviour": behaviour, "budget": budget, "plan": written, **described(found)})
    if save is not None and written is None:
        screen.print(Text(f"error: no plan was written to {save}"), soft_wrap=True)
        raise typer.Exit(1)


def _front(found: Tuned) -> Table:
    columns = ("layer", "coefficient", "effect, nats", "top-1 lost", "")
    table = Table(
        *columns, title="trade-off front, on questions for choosing", title_justify="left"
    )
    for one in found.front:
        mark = "strongest within the budget" if one == found.picked else ""
        cells = (str(one.layer), f"{one.coefficient:+g}", f"{one.effect:.3f}", f"{one.lost:.1%}")
        table.add_row(*cells, mark)
    return table


def _findings(found: Tuned, behaviour: str, budget: float) -> list[str]:
    """What the search amounts to, in words."""
    held = found.held_out
    if found.picked is None or held is None:
        return [
            f"no point of the grid moves {behaviour} the wanted way within {budget:.1%}; raise --budget, or try smaller "
            "coefficients in a preset of your own"
        ]
    lines = [
        f"on {held.questions} questions that chose nothing: {_interval(held.effect)}; {len(held.random)} random directions of "
        f"the same length: up to {_nats(held.strongest_random)} either way"
    ]
    if found.best is None:
        return [
            *lines,
            f"nothing here is better than chance: layer {found.picked.layer} with "
            f"{found.picked.coefficient:+g} was the strongest on few questions, by luck as far as these can tell",
        ]
    best = found.best
    return [
        *lines,
        f"best: layer {best.layer}, coefficient {best.coefficient:+g}, for {best.lost:.1%} of top-1 accuracy",
    ]


def _interval(effect: Effect) -> str:
    if effect.mean is None:
        return "not finite"
    return f"{effect.mean:+.3f} nats [{effect.low:+.3f}, {effect.high:+.3f}]"


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
