"""``.npz`` and ``.npy``: numpy's arrays, never pickled objects.

Ours has arrays ``direction.<layer>`` and, as text, ``steerfast`` (name, stream norms, provenance) and ``layers_are``.
Others are taken if their arrays are named by layer (``0``, ``layer_12``), or if there is one array ``[layers, D]``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerfast.io.formats.about import KEY, about_text, read_about
from steerfast.io.formats.found import Found, layer_number, rows
from steerfast.io.formats.layers import (
    OUTPUTS,
    Convention,
    LayersAre,
    convention_named,
    from_outputs,
)
from steerfast.io.formats.npz import ArrayFile, read_npy
from steerfast.io.whole import written_whole
from steerfast.plans.vector import SteeringVector

ROWS = Convention("outputs", "row l is the output of layer l, layers from 0", sure=False)
KEYED = Convention("outputs", "array l is the output of layer l, layers from 0", sure=False)
_LAYER = re.compile(r"(?:(?:layer|layers|direction)[._]?)?(0|[1-9]\d{0,3})")


def read_npz_vectors(path: Path, only: str | None) -> Found:
    """The directions of an ``.npz``. only: the one array to take of several. ValueError for what holds none."""
    with ArrayFile.of(path) as file:
        names = file.names
        if not names:
            raise ValueError("it has no arrays")
        if KEY in names:
            return _ours(file)
        if only is not None:
            if only not in names:
                raise ValueError(f"it has no array {only[:80]!r}; it has {', '.join(names)[:200]}")
            return _one(file.whole(only), f"array {only!r}", None)
        numbers = {name: _LAYER.fullmatch(name) for name in names}
        if all(numbers.values()):
            found = {
                layer_number(int(match[1]), "it"): _tensor(file.whole(name), name)
                for name, match in numbers.items()
                if match
            }
            if len(found) < len(names):
                raise ValueError(f"two of its arrays are of one layer: {', '.join(names)[:200]}")
            return Found("arrays by layer (.npz)", KEYED, found)
        if len(names) != 1:
            raise ValueError(
                f"its arrays are {', '.join(names)[:200]}, which are no layers; say which one holds the directions: "
                f"'{path.name}#{names[0] if names else ''}'"
            )
        return _one(file.whole(names[0]), f"array {names[0]!r}", None)


def read_npy_vector(path: Path, layer: int | None) -> Found:
    """The directions of an ``.npy``: [layers, D], or [D] with its layer given."""
    return _one(read_npy(path), "its array", layer)


def of_array(array: Any, layer: int | None, what: str) -> Found:
    """Directions of an array or tensor in memory."""
    return _one(np.asarray(array), what, layer)


def _one(array: np.ndarray[Any, Any], what: str, layer: int | None) -> Found:
    tensor = _tensor(array, what)
    if tensor.ndim == 1:
        if layer is None:
            raise ValueError(
                f"{what} is one direction and does not say of which layer; give layer="
            )
        return Found("one direction", OUTPUTS, {layer_number(layer, what): tensor})
    return Found("rows by layer", ROWS, rows(tensor, what))


def _ours(file: ArrayFile) -> Found:
    said = file.text(KEY)
    convention = convention_named(
        file.text("layers_are") if "layers_are" in file.names else "outputs"
    )
    found = {}
    for name in file.names:
        if name in (KEY, "layers_are"):
            continue
        match = _LAYER.fullmatch(name)
        if match is None or not name.startswith("direction."):
            raise ValueError(f"it has an array {name[:80]!r}; a vector's are 'direction.<layer>'")
        found[layer_number(int(match[1]), "it")] = _tensor(file.whole(name), name)
    return Found("steerfast .npz", convention, found, **read_about(said))


def _tensor(array: np.ndarray[Any, Any], what: str) -> torch.Tensor:
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or not array.size:
        raise ValueError(
            f"{what} is {array.dtype} of shape {list(array.shape)}; directions are real numbers, [layers, D]"
        )
    with np.errstate(over="ignore"):  # too great for float32: infinite, and refused as such
        return torch.from_numpy(np.array(array, dtype="<f4"))


def write(vector: SteeringVector, path: Path, layers_are: LayersAre) -> None:
    """Ours, which gives the vector back whole."""
    numbered = from_outputs(vector.directions, layers_are)
    arrays: dict[str, Any] = {
        KEY: np.array(about_text(vector)),
        "layers_are": np.array(layers_are),
        **{f"direction.{number}": direction.numpy() for number, direction in numbered.items()},
    }
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)
