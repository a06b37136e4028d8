"""``steerfast study``: the paper's studies, and that of pruned models."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, emit, load, paper, stages
from steerfast.cli.options import DtypeOption, JsonFlag, ModelOption

if TYPE_CHECKING:
    from steerfast.experiments.study import Work

study = typer.Typer(no_args_is_help=True, help="Studies: a configuration and one runner each.")
app.add_typer(study, name="study")

PresetOption = Annotated[
    str,
    typer.Option(
        "--preset", "-p", help="smollm2, gemma3-270m, llama-2-7b-chat, or a .toml file like them."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder; a rerun goes on where it stopped. Default study-KIND-PRESET."
    ),
]
TaxTextOption = Annotated[
    str, typer.Option(help="Text for the alignment tax: file, folder, hub:DATASET, or prose.")
]
RayFlag = Annotated[
    bool,
    typer.Option("--ray", help="Spread the work over a Ray cluster; each worker loads the model."),
]


@study.command()
def broad(
    preset: PresetOption = "smollm2",
    text: Annotated[
        str | None, typer.Option(help="A text file, a folder, hub:DATASET, or prose (ships).")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Likewise; stdlib is Python's own library.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to predict on each side, instead of the preset's.")
    ] = None,
    out: OutOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    ray: RayFlag = False,
    json_: JsonFlag = False,
) -> None:
    """Text against code: what steering away from code costs on text."""
    from steerfast.experiments.corpora import read_corpus
    from steerfast.experiments.study import study_broad

    def work(config: Any) -> Work:
        given = {"text": text, "code": code, "tokens": tokens}
        config = replace(config, **{n: value for n, value in given.items() if value is not None})
        return study_broad(config, text=read_corpus(config.text), code=read_corpus(config.code))

    _study("broad", preset, out, model, dtype, ray, json_, work)


@study.command()
def behaviours(
    preset: PresetOption = "smollm2",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of questions, NAME.json of each behaviour, as in Anthropic's model-written evals; "
            "default the set that ships."
        ),
    ] = None,
    text: TaxTextOption = "prose",
    out: OutOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    ray: RayFlag = False,
    json_: JsonFlag = False,
) -> None:
    """Several behaviours: grid search, then individual, combined and simultaneous steering."""
    from steerfast.experiments.corpora import read_corpus
    from steerfast.experiments.study import study_behaviours

    def work(config: Any) -> Work:
        return study_behaviours(config, data=data, texts=read_corpus(text))

    _study("behaviours", preset, out, model, dtype, ray, json_, work)


@study.command()
def sparsity(
    preset: PresetOption = "smollm2",
    text: TaxTextOption = "prose",
    out: OutOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """The same steering on the dense model and on pruned copies."""
    from steerfast.experiments.corpora import read_corpus
    from steerfast.experiments.study import study_sparsity

    def work(config: Any) -> Work:
        return study_sparsity(config, texts=read_corpus(text))

    _study("sparsity", preset, out, model, dtype, False, json_, work)


@study.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")], json_: JsonFlag = False
) -> None:
    """Write a study's report and figures again, from its results."""
    import json

    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"no results.json in {folder}; run the study to its end first")
    _finish(json.loads(path.read_text(encoding="utf-8")), folder, json_)


def _study(
    kind: str,
    preset: str,
    out: Path | None,
    model: str | None,
    dtype: str | None,
    ray: bool,
    as_json: bool,
    work_of: Callable[[Any], Work],
) -> None:
    """Look at the data and the folder, load, run, report: the same for every kind of study."""
    from steerfast.experiments.claim import check_folder
    from steerfast.experiments.config import load_preset
    from steerfast.experiments.measure import Laboratory
    from steerfast.experiments.study import Study

    chosen = load_preset(preset)
    config = getattr(chosen, kind)
    if config is None:
        raise ValueError(f"preset {chosen.name} configures no study of {kind}")
    folder = out or Path(f"study-{kind}-{chosen.name}")
    work = work_of(config)
    check_folder(folder, work.identity)
    name, precision = model or chosen.model, dtype or chosen.dtype
    spread: Any = None
    if ray:
        import torch

        from steerfast.experiments.spread import RaySpread

        spread = RaySpread(name, precision, gpus=float(torch.cuda.is_available()))
    laboratory = Laboratory(load(name, precision))
    with stages() as stage:
        results = Study(laboratory, folder, stage, spread).run(work)
    _finish(results, folder, as_json)


def _finish(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Figures, report, and the tables."""
    from steerfast.experiments.figures import figures
    from steerfast.experiments.report import tables, write_report

    for number, drawing in enumerate(figures(results).values(), 1):
        (folder / f"figure-{number}.svg").write_text(drawing, encoding="utf-8")
    page = write_report(results, folder / "report.html")
    out = paper(as_json)
    for rows in tables(results):
        table = Table(*rows.head, title=rows.caption, title_justify="left")
        for row in rows.rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
    out.print(Text(f"report: {os.fspath(page)}"), soft_wrap=True)
    facts = {"results": str(folder / "results.json"), "report": str(page), "kind": results["kind"]}
    emit(as_json, facts)
