"""``steerfast extract``, ``generate``: make a vector, steer by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, counter, emit, load, screen, stages
from steerfast.cli.options import DtypeOption, JsonFlag, ModelOption


@app.command()
def extract(
    out: Annotated[Path, typer.Option("--out", "-o", help="Vector file to write (.safetensors).")],
    pairs: Annotated[
        str | None,
        typer.Option(help="Contrast pairs: a shipped set by name, or a file (JSON, JSONL, CSV)."),
    ] = None,
    positive: Annotated[
        Path | None,
        typer.Option(
            help="Corpus A: a file (JSON, JSONL, CSV, or text: one a line, or with blank lines between) or a folder of files."
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
    from steerfast.cli.arguments import parse_layers, parse_position
    from steerfast.extraction.extract import extract_corpora, extract_pairs
    from steerfast.extraction.texts import count_texts, read_texts
    from steerfast.io import save_vector

    where = parse_position(position)
    corpora = [path for path in (positive, negative) if path is not None]
    if len(corpora) != (2 if pairs is None else 0):
        raise ValueError("give either --pairs, or both --positive and --negative")
    chosen = None if layers is None else parse_layers(layers)
    chosen_set = None if pairs is None else contrast.load(pairs)
    texts = sum(count_texts(path, max_texts) for path in corpora)  # read before the model is
    loaded = load(model, dtype)
    with stages() as stage:
        options: dict[str, Any] = {"position": where, "layers": chosen, "batch_size": batch_size}
        if chosen_set is not None:
            step = stage("extracting", 2 * len(chosen_set.train))
            vector = extract_pairs(
                loaded.model,
                loaded.tokenizer,
                chosen_set.train,
                name=name or chosen_set.name,
                progress=counter(step),
                **options,
            )
        else:
            assert positive is not None
            assert negative is not None
            step = stage("extracting", texts)
            vector = extract_corpora(
                loaded.model,
                loaded.tokenizer,
                read_texts(positive, max_texts),
                read_texts(negative, max_texts),
                name=name or f"{positive.stem} minus {negative.stem}",
                max_tokens=max_tokens,
                progress=counter(step),
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
    emit(json_, {"path": str(path), "name": vector.name, "layers": list(vector.layers), **facts})


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
    select: Annotated[
        str,
        typer.Option(
            help="all, prompt, generated, after_prompt or last_prompt_token, for --vector."
        ),
    ] = "all",
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
    from steerfast.cli.arguments import parse_vectors
    from steerfast.experiments.side_by_side import side_by_side
    from steerfast.io import load_plan

    if (plan is None) == (not vector):
        raise ValueError("give either --plan, or --vector at least once")
    wanted = (
        load_plan(plan)
        if plan is not None
        else parse_vectors(vector or [], scale, select, finish, operator)
    )
    loaded = load(model, dtype)
    with screen.status("generating"):
        pair = side_by_side(
            loaded, prompt, wanted, tokens=tokens, chat=chat, sample=sample, seed=seed
        )
    table = Table("unsteered", "steered", title=Text(prompt), show_lines=True)
    table.add_row(Text(pair.unsteered), Text(pair.steered))
    (screen if json_ else Console()).print(table)
    screen.print(Text(str(pair.report)))
    emit(
        json_,
        {
            "prompt": prompt,
            "unsteered": pair.unsteered,
            "steered": pair.steered,
            "plan": wanted.digest,
            "steered_rows": pair.report.steered,
        },
    )


@app.command()
def checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    model: ModelOption = None,
    dtype: DtypeOption = None,
    json_: JsonFlag = False,
) -> None:
    """Write a model (SmolLM2 by default) as a plain checkpoint folder, as serving engines load it."""
    loaded = load(model, dtype)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    screen.print(Text(f"{loaded.name}, {loaded.model.dtype} -> {folder}/"))
    emit(json_, {"path": str(folder), "model": loaded.name, "dtype": str(loaded.model.dtype)})
