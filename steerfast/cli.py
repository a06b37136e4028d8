"""The command line. Progress and tables go to stderr; with ``--json`` the last line of stdout is one
JSON object, without it results go to stdout as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steerfast.errors import SteerfastError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Activation steering fused into the residual stream of Llama models.",
)
screen = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Last line of stdout: one JSON object.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder, GGUF file or hub id of a Llama; default SmolLM2-135M-Instruct.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; default what this device multiplies fastest."),
]


def main() -> None:
    """Entry point: expected errors become one line and exit status 1."""
    try:
        app()
    except (SteerfastError, ValueError, OSError) as error:
        screen.print(Text.assemble(("error: ", "red"), str(error)))
        sys.exit(1)


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


def _load(name: str | None, dtype: str | None) -> Any:
    import torch

    from steerfast.models.load import load_model

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in known:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(known)}")
    with screen.status("loading the model"):
        return load_model(name, dtype=known[dtype] if dtype else None)


def _emit(as_json: bool, data: dict[str, Any]) -> None:
    if as_json:
        print(json.dumps(data))


@app.command()
def env(json_: JsonFlag = False) -> None:
    """Which backends exist here, why the others do not, and the versions that matter."""
    from steerfast.environment import describe

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
    _emit(json_, facts)


@app.command()
def operators(json_: JsonFlag = False) -> None:
    """What a term can do: each operator's formula and the fields it takes."""
    from steerfast.operators import OPERATORS

    table = Table("operator", "adds to h", "needs", "takes")
    for name, takes in OPERATORS.items():
        table.add_row(
            name, Text(takes.formula), ", ".join(takes.required), ", ".join(takes.optional)
        )
    screen.print(table)
    screen.print(
        "p = <h, v̂>, n = |h|, v̂ = v/|v|, c = coefficient, t = target; any term takes a gate"
    )
    _emit(json_, {name: takes.formula for name, takes in OPERATORS.items()})


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
    from steerfast.io import save_vector
    from steerfast.plots import plot_dose_response

    loaded = _load(model, dtype)
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
    _emit(
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


@app.command()
def extract(
    out: Annotated[Path, typer.Option("--out", "-o", help="Vector file to write (.safetensors).")],
    pairs: Annotated[
        str | None, typer.Option(help="Contrast pairs: a shipped set by name, or a JSON file.")
    ] = None,
    positive: Annotated[
        Path | None,
        typer.Option(
            help="Corpus A: a text file, one text per blank-line-separated block, or a folder of files."
        ),
    ] = None,
    negative: Annotated[
        Path | None, typer.Option(help="Corpus B, likewise; the vector is A minus B.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the direction; default from the input.")
    ] = None,
    position: Annotated[
        str, typer.Option(help="last, mean, or a token index (negative from the end).")
    ] = "last",
    layers: Annotated[
        str | None, typer.Option(help="Layers to keep, such as 10,15 or 8-12; default all.")
    ] = None,
    max_texts: Annotated[
        int | None, typer.Option(help="At most so many texts of each corpus.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Cut corpus texts after so many tokens.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Texts per forward pass.")] = 16,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make a steering vector from contrast pairs, or from two corpora."""
    from steerfast import contrast
    from steerfast.extract import extract_corpora, extract_pairs
    from steerfast.io import save_vector
    from steerfast.texts import count_texts, parse_layers, parse_position, read_texts

    where = parse_position(position)
    corpora = [path for path in (positive, negative) if path is not None]
    if len(corpora) != (2 if pairs is None else 0):
        raise ValueError("give either --pairs, or both --positive and --negative")
    chosen = None if layers is None else parse_layers(layers)
    chosen_set = None if pairs is None else contrast.load(pairs)
    loaded = _load(model, dtype)
    with stages() as stage:
        options: dict[str, Any] = {"position": where, "layers": chosen, "batch_size": batch_size}
        if chosen_set is not None:
            step = stage("extracting", 2 * len(chosen_set.train))
            vector = extract_pairs(
                loaded.model,
                loaded.tokenizer,
                chosen_set.train,
                name=name or chosen_set.name,
                progress=_counter(step),
                **options,
            )
        else:
            assert positive is not None
            assert negative is not None
            step = stage(
                "extracting", count_texts(positive, max_texts) + count_texts(negative, max_texts)
            )
            vector = extract_corpora(
                loaded.model,
                loaded.tokenizer,
                read_texts(positive, max_texts),
                read_texts(negative, max_texts),
                name=name or f"{positive.stem} minus {negative.stem}",
                max_tokens=max_tokens,
                progress=_counter(step),
                **options,
            )
    path = save_vector(vector, out)
    screen.print(Text(f"{vector!r} -> {path}"))
    norms = {layer: float(direction.norm()) for layer, direction in vector.directions.items()}
    facts = {
        "norms": norms,
        "stream_norms": dict(vector.stream_norms),
        "provenance": dict(vector.provenance),
    }
    _emit(json_, {"path": str(path), "name": vector.name, "layers": list(vector.layers), **facts})


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; chat template on for instruct models.")
    ],
    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector",
            "-v",
            help="FILE:NUMBER[:LAYERS], e.g. joy.safetensors:0.2:10; repeatable. NUMBER is the "
            "coefficient, or the target of clamp, floor and ceiling.",
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan as JSON, instead of --vector.")] = None,
    operator: Annotated[
        str, typer.Option(help="add, ablate, clamp, ... for --vector; see `steerfast operators`.")
    ] = "add",
    scale: Annotated[
        str | None,
        typer.Option(help="raw, unit, equal or stream (the default), for --vector and add."),
    ] = None,
    select: Annotated[str, typer.Option(help="all, prompt or generated, for --vector.")] = "all",
    finish: Annotated[str, typer.Option(help="none, preserve or shrink, for --vector.")] = "none",
    tokens: Annotated[int, typer.Option(help="New tokens.")] = 64,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Force the chat template on or off.")
    ] = None,
    sample: Annotated[bool, typer.Option(help="Sample instead of greedy decoding.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for --sample.")] = 0,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Generate with steering, side by side with unsteered."""
    from steerfast.experiments.side_by_side import side_by_side
    from steerfast.io import load_plan
    from steerfast.texts import parse_vectors

    if (plan is None) == (not vector):
        raise ValueError("give either --plan, or --vector at least once")
    wanted = (
        load_plan(plan)
        if plan is not None
        else parse_vectors(vector or [], scale, select, finish, operator)
    )
    loaded = _load(model, dtype)
    with screen.status("generating"):
        pair = side_by_side(
            loaded, prompt, wanted, tokens=tokens, chat=chat, sample=sample, seed=seed
        )
    table = Table("unsteered", "steered", title=Text(prompt), show_lines=True)
    table.add_row(Text(pair.unsteered), Text(pair.steered))
    (screen if json_ else Console()).print(table)
    screen.print(Text(str(pair.report)))
    _emit(
        json_,
        {
            "prompt": prompt,
            "unsteered": pair.unsteered,
            "steered": pair.steered,
            "plan": wanted.digest,
            "steered_rows": pair.report.steered,
        },
    )


def _counter(step: Callable[[], None]) -> Callable[[int], None]:
    """A progress callback that is given totals, from one that is called once per item."""
    seen = 0

    def update(done: int) -> None:
        nonlocal seen
        for _ in range(done - seen):
            step()
        seen = done

    return update
