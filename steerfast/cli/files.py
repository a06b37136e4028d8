"""``steerfast convert``, ``inspect``: vectors of any library, from one file to another, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerfast.cli.console import app, emit, paper
from steerfast.cli.options import JsonFlag

if TYPE_CHECKING:
    from steerfast.plans.plan import Plan
    from steerfast.plans.vector import SteeringVector

LayerOption = Annotated[
    int | None, typer.Option(help="Of a file with one direction that does not say of which layer.")
]
LayersAreOption = Annotated[
    str | None,
    typer.Option(
        "--layers-are",
        help="What a number in the files means: outputs (of layer l, from 0) or inputs (of layer l, hidden_states[l], "
        "layers from 1); default the format's convention.",
    ),
]


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="File or address, with #part where it has several.")
    ],
    to: Annotated[
        Path, typer.Argument(help=".safetensors, .gguf, .npz, .pt or .svec; .json of a plan.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the vector; default what the file says.")
    ] = None,
    layer: LayerOption = None,
    layers_are: LayersAreOption = None,
    target: Annotated[
        float | None, typer.Option(help="Of an SAE's feature: a plan that clamps it there.")
    ] = None,
    write_layers_are: Annotated[
        str, typer.Option(help="What a number in the written .npz, .pt or .svec is to mean.")
    ] = "outputs",
    json_: JsonFlag = False,
) -> None:
    """A vector or plan of any library, written in another format."""
    from steerfast.io import load, save

    loaded = load(source, name=name, layer=layer, layers_are=_layers_are(layers_are), target=target)
    wanted = None if write_layers_are == "outputs" else _layers_are(write_layers_are)
    written = save(loaded, to, layers_are=wanted)
    paper(json_).print(Text(f"{_line(loaded)} -> {written}"), soft_wrap=True)
    emit(json_, {"written": str(written), **_facts(loaded)})


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(help="Files or addresses of vectors.")],
    layer: LayerOption = None,
    layers_are: LayersAreOption = None,
    json_: JsonFlag = False,
) -> None:
    """What is in vectors: layers, norms, outlier channels, convention, provenance; cosines between several."""
    from steerfast.io import load
    from steerfast.io.inspection import cosines, looks
    from steerfast.plans.plan import Plan

    out = paper(json_)
    vectors: dict[str, SteeringVector] = {}
    facts: list[dict[str, Any]] = []
    for file in files:
        loaded = load(file, layer=layer, layers_are=_layers_are(layers_are))
        facts.append({"file": file, **_facts(loaded)})
        out.print(Text(f"{file}: {_line(loaded)}", style="bold"), soft_wrap=True)
        if isinstance(loaded, Plan):
            continue
        vectors[file] = loaded
        rows = looks(loaded)
        facts[-1]["by_layer"] = [row._asdict() for row in rows]
        table = Table("layer", "norm", "share of stream", "outlier channels (value)")
        for row in rows:
            channels = ", ".join(f"{channel} ({value:+.3g})" for channel, value in row.outliers)
            share = "" if row.share is None else f"{row.share:.1%}"
            table.add_row(str(row.layer), f"{row.norm:.4g}", share, channels)
        out.print(table)
        for key, value in loaded.provenance.items():
            out.print(Text(f"  {key}: {str(value)[:300]}"), soft_wrap=True)
    pairs = []
    for (one, first), (other, second) in _pairs(vectors):
        by_layer = cosines(first, second)
        pairs.append({"files": [one, other], "cosines": by_layer})
        out.print(Text(f"cosines of {one} and {other}: {_cosines(by_layer)}"), soft_wrap=True)
    emit(json_, {"vectors": facts, "pairs": pairs})


def _layers_are(given: str | None) -> Any:
    """Checked by ``load``."""
    return given


def _line(loaded: SteeringVector | Plan) -> str:
    from steerfast.plans.plan import Plan

    if not isinstance(loaded, Plan):
        return repr(loaded)
    terms = ", ".join(f"{term.operator} by {term.vector.name!r}" for term in loaded.terms[:8])
    return f"a plan of {len(loaded.terms)} terms ({terms}) at layers {loaded.layers}"


def _facts(loaded: SteeringVector | Plan) -> dict[str, Any]:
    from steerfast.plans.plan import Plan

    if isinstance(loaded, Plan):
        return {"plan": loaded.digest, "layers": list(loaded.layers)}
    return {
        "name": loaded.name,
        "layers": list(loaded.layers),
        "hidden_size": loaded.hidden_size,
        "positions": loaded.positions,
        "digest": loaded.digest,
        "stream_norms": {str(layer): norm for layer, norm in loaded.stream_norms.items()},
        "provenance": dict(loaded.provenance),
    }


def _pairs(vectors: dict[str, SteeringVector]) -> Any:
    from itertools import combinations

    return combinations(vectors.items(), 2)


def _cosines(by_layer: dict[int, float | None]) -> str:
    if not by_layer:
        return "no layer in common, or directions of other shapes"
    return ", ".join(
        f"{layer}: {'-' if value is None else f'{value:+.3f}'}" for layer, value in by_layer.items()
    )
