"""Vectors in files and in JSON: safetensors, one float32 [D] (or [T, D]) tensor per layer, facts as metadata."""

from __future__ import annotations

import base64
import json
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerfast.io.facts import facts_to_json
from steerfast.io.strict import (
    as_layer,
    as_number,
    as_object,
    as_text,
    as_whole,
    no_other_keys,
    parse,
)
from steerfast.io.whole import check_suffix, written_whole
from steerfast.plans.vector import LAYER_CONVENTION, SteeringVector

FORMAT = "steerfast.vector/1"
SUFFIX = ".safetensors"
_VECTOR_KEYS = {"name", "positions", "directions", "stream_norms", "provenance"}


def save_vector(vector: SteeringVector, path: str | Path) -> Path:
    """Write ``directions.<layer>`` tensors and, as metadata, name, norms and provenance. Returns the path.

    The file appears whole or not at all, and only if ``load_vector`` gives the vector back. Provenance becomes plain
    JSON: numbers of numpy and tensors, tuples and integer keys are converted. ValueError for what JSON does not hold
    (NaN, say), and for a path of another suffix than ``.safetensors``.
    """
    from safetensors.torch import save_file

    path = check_suffix(path, SUFFIX, "a vector")
    about = {
        "format": FORMAT,
        "name": vector.name,
        "layer_convention": LAYER_CONVENTION,
        "stream_norms": {str(layer): norm for layer, norm in vector.stream_norms.items()},
        "provenance": _provenance(vector),
    }
    tensors = {f"directions.{layer}": tensor for layer, tensor in vector.directions.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata={"steerfast": json.dumps(about, allow_nan=False)})
        _check_reads_back(vector, unfinished)
    return path


def _check_reads_back(vector: SteeringVector, path: Path) -> None:
    """ValueError where the reader refuses what was written, or takes it for something else."""
    try:
        same = load_vector(path) == vector
    except ValueError as error:
        reason = error.__cause__ or error
        raise ValueError(f"vector {vector.name!r} cannot be saved: {reason}") from error
    if not same:
        raise ValueError(f"vector {vector.name!r} cannot be saved: it reads back as another")


def load_vector(path: str | Path) -> SteeringVector:
    """Read a vector file. FileNotFoundError if there is none; ValueError, with the path, if it is
    truncated, of another format, or holds no valid vector."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not isfile(path):
        raise FileNotFoundError(f"no vector file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error
    if "steerfast" not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not a steerfast vector: it has no 'steerfast' metadata"
        )
    try:
        about = as_object(parse(metadata["steerfast"], "its metadata"), "its metadata")
        if about.get("format") != FORMAT:
            raise ValueError(
                f"it has format {about.get('format')!r}; this version reads {FORMAT!r}"
            )
        directions = {}
        for name, tensor in tensors.items():
            if not name.startswith("directions."):
                raise ValueError(f"it has a tensor {name!r}; a vector's are 'directions.<layer>'")
            if not tensor.is_floating_point():
                raise ValueError(f"tensor {name!r} is {tensor.dtype}; directions are real numbers")
            directions[as_layer(name.removeprefix("directions."), "a tensor")] = tensor
        return _vector(about.get("name"), directions, about)
    except ValueError as error:
        raise ValueError(f"{path} does not hold a valid vector: {error}") from error


def vector_to_json(vector: SteeringVector) -> dict[str, Any]:
    """The JSON form: values inline, base64 of little-endian float32. ValueError for provenance that JSON does not hold."""
    directions = {
        str(layer): base64.b64encode(np.asarray(tensor.numpy(), dtype="<f4").tobytes()).decode()
        for layer, tensor in vector.directions.items()
    }
    norms = {str(layer): norm for layer, norm in vector.stream_norms.items()}
    provenance = _provenance(vector)
    positions = {} if vector.positions is None else {"positions": vector.positions}
    return {
        "name": vector.name,
        **positions,
        "directions": directions,
        "stream_norms": norms,
        "provenance": provenance,
    }


def _provenance(vector: SteeringVector) -> dict[str, Any]:
    return facts_to_json(vector.provenance, f"the provenance of vector {vector.name!r}")


def vector_from_json(data: dict[str, Any]) -> SteeringVector:
    """The vector of its JSON form; ValueError for anything else."""
    data = as_object(data, "an inline vector")
    no_other_keys("a vector", data, _VECTOR_KEYS)
    rows = data.get("positions")
    shape = (-1,) if rows is None else (as_whole(rows, "a vector's positions", 1), -1)
    given = as_object(data.get("directions"), "'directions' of an inline vector")
    directions = {
        as_layer(layer, "a vector"): _values(text, shape) for layer, text in given.items()
    }
    return _vector(data.get("name"), directions, data)


def _values(text: object, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        raw = base64.b64decode(as_text(text, "a direction"), validate=True)
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy()).reshape(shape)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "an inline vector has 'directions': {layer: base64 of little-endian float32}, and this one cannot be read: "
            f"{error}"
        ) from error


def _vector(
    name: object, directions: dict[int, torch.Tensor], about: dict[str, Any]
) -> SteeringVector:
    """With the norms and the provenance of its metadata, each of which may be missing."""
    norms = {
        as_layer(layer, "a stream norm"): as_number(norm, f"the stream norm of layer {layer}")
        for layer, norm in as_object(about.get("stream_norms", {}), "'stream_norms'").items()
    }
    provenance = as_object(about.get("provenance", {}), "'provenance'")
    return SteeringVector(as_text(name, "a vector's name"), directions, norms, provenance)
