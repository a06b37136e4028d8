"""``.svec``: JSON of IBM's activation-steering and AISteer360 (steerability): ``directions`` {layer: list}.

Both read a direction at the output of layer l. AISteer360 adds it there; activation-steering adds it at the *input* of
layer l, one layer earlier. The file does not say for which it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfast.io.formats.about import KEY, about, read_about
from steerfast.io.formats.found import MOST_VALUES, Found, layer_number
from steerfast.io.formats.layers import Convention, LayersAre, convention_named, from_outputs
from steerfast.io.strict import as_layer, as_list, as_number, as_object, read
from steerfast.io.whole import written_whole
from steerfast.plans.vector import SteeringVector

FORMAT = ".svec"
CONVENTION = Convention(
    "outputs",
    "key l was read at the output of layer l, layers from 0, and AISteer360 adds it there (activation-steering adds it "
    "at the input of layer l: layers_are='inputs')",
    sure=False,
)
LARGEST = 2**30


def read_svec(path: Path) -> Found:
    """The directions of a file; ValueError for what is none, or holds directions of heads."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size} bytes; a .svec has at most {LARGEST}")
    return find(as_object(read(path, "a .svec"), "a .svec"))


def find(data: dict[str, Any]) -> Found:
    """The directions of a parsed file."""
    if data.get("num_heads") is not None:
        raise ValueError(
            "its directions are of attention heads (ITI); take data['directions'] to steerfast.io.formats.heads.from_heads, "
            "with the model"
        )
    given = as_object(data.get("directions"), "'directions'")
    numbered = {
        layer_number(as_layer(key, "'directions'"), "'directions'"): _direction(
            value, key, KEY in data
        )
        for key, value in given.items()
    }
    if not numbered:
        raise ValueError("it has no directions")
    said: dict[str, Any] = {"provenance": {}}
    convention = CONVENTION
    if KEY in data:
        said = read_about(data[KEY])
        convention = convention_named(data[KEY].get("layers_are", "outputs"))
    elif isinstance(data.get("model_type"), str):
        said = {"provenance": {"model_type": data["model_type"]}}
    return Found(FORMAT, convention, numbered, **said)


def _direction(value: object, key: str, ours: bool) -> Tensor:
    """[D], or [T, D] of positions; AISteer360 writes [D] as [1, D], and we do not."""
    what = f"the direction of layer {key}"
    lines = as_list(value, what)
    if lines and isinstance(lines[0], list):
        table = [[as_number(one, what) for one in as_list(line, what)] for line in lines]
        if len({len(line) for line in table}) != 1:
            raise ValueError(f"{what} has lines of other lengths")
        values = table[0] if len(table) == 1 and not ours else table
        return torch.tensor(values, dtype=torch.float32)
    if len(lines) > MOST_VALUES:
        raise ValueError(f"{what} has {len(lines)} values")
    return torch.tensor([as_number(one, what) for one in lines], dtype=torch.float32)


def write(vector: SteeringVector, path: Path, layers_are: LayersAre) -> None:
    """As both load it; what they do not know lies under the key ``steerfast``."""
    numbered = from_outputs(vector.directions, layers_are)
    data = {
        "model_type": str(vector.provenance.get("model_type", "unknown")),
        "directions": {str(number): direction.tolist() for number, direction in numbered.items()},
        "explained_variances": {},
        KEY: {**about(vector), "layers_are": layers_are},
    }
    text = json.dumps(data, allow_nan=False)
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
