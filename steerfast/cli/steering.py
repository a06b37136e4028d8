"""``steerfast extract``, ``generate``: make a vector, steer by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, counter, emit, load, paper, screen, stages
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
        int | None, typer.Option(min=1, help="At most so many texts of each corpus.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Cut corpus texts after so many tokens.")
    ] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 16,
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
    from steerfast.io.vectors import SUFFIX
    from steerfast.io.whole import check_suffix

    where, out = parse_position(position), check_suffix(out, SUFFIX, "a vector")
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
    counts = ", ".join(f"{count} {what}" for what, count in vector.provenance["counts"].items())  # type: ignore[attr-defined]
    paper(json_).print(Text(f"{vector!r} of {counts} -> {path}"), soft_wrap=True)
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
            help="FILE:NUMBER[:LAYERS], e.g. joy.safetensors:1:10; repeatable. NUMBER is the coefficient, or the "
            "target of clamp, floor and ceiling. LAYERS are like 10,15 or 8-12, or all; default one, a third of the "
            "way through the model.",
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Steer by this plan, JSON, instead of --vector.")
    ] = None,
    operator: Annotated[
        str, typer.Option(help="add, ablate, clamp, ... for --vector; see `steerfast operators`.")
    ] = "add",
    scale: Annotated[
        str | None,
        typer.Option(
            help="What a coefficient of add multiplies, for --vector: raw (the default), the vector as it was extracted; "
            "stream, the typical length of the model's stream; unit or equal."
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            help="all, prompt, generated, after_prompt or last_prompt_token, for --vector."
        ),
    ] = "all",
    finish: Annotated[str, typer.Option(help="none, preserve or shrink, for --vector.")] = "none",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens.")] = 64,
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
    from steerfast.experiments.side_by_side import explained, side_by_side
    from steerfast.io import load_plan
    from steerfast.table.cost import cost
    from steerfast.table.dose import greatest
    from steerfast.table.lowering import lower

    if (plan is None) == (not vector):
        raise ValueError("give either --plan, or --vector at least once")
    wanted = (
        load_plan(plan)
        if plan is not None
        else parse_vectors(vector or [], scale, select, finish, operator, _note)
    )
    phases = lower(wanted).phases
    doses = greatest(wanted, phases)
    loaded = load(model, dtype)
    with screen.status("generating"):
        pair = side_by_side(
            loaded, prompt, wanted, tokens=tokens, chat=chat, sample=sample, seed=seed
        )
    table = Table("unsteered", "steered", title=Text(prompt), show_lines=True)
    table.add_row(Text(pair.unsteered), Text(pair.steered))
    paper(json_).print(table)
    _note(explained(pair.report, sum(doses.values()) if doses else None))
    emit(
        json_,
        {
            "prompt": prompt,
            "unsteered": pair.unsteered,
            "steered": pair.steered,
            "plan": wanted.digest,
            "layers": list(wanted.layers),
            "dose": sum(doses.values()) if doses else None,
            "cost": cost(wanted, loaded.model)._asdict(),
            "steered_rows": pair.report.steered,
        },
    )


def _note(text: str) -> None:
    screen.print(Text(text), soft_wrap=True)


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
    paper(json_).print(Text(f"{loaded.name}, {loaded.model.dtype} -> {folder}/"), soft_wrap=True)
    emit(json_, {"path": str(folder), "model": loaded.name, "dtype": str(loaded.model.dtype)})
