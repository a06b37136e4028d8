"""Vectors in files and in JSON: safetensors, one float32 [D] (or [T, D]) tensor per layer, facts as metadata."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerfast.plans.vector import LAYER_CONVENTION, SteeringVector

FORMAT = "steerfast.vector/1"
_VECTOR_KEYS = {"name", "positions", "directions", "stream_norms", "provenance"}


def save_vector(vector: SteeringVector, path: str | Path) -> Path:
    """Write ``directions.<layer>`` tensors and, as metadata, name, norms and provenance. Returns the path.

    The file appears whole or not at all: it is written beside its place and renamed.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT,
        "name": vector.name,
        "layer_convention": LAYER_CONVENTION,
        "stream_norms": {str(layer): norm for layer, norm in vector.stream_norms.items()},
        "provenance": dict(vector.provenance),
    }
    tensors = {f"directions.{layer}": tensor for layer, tensor in vector.directions.items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"steerfast": json.dumps(about)})
    temporary.replace(path)
    return path


def load_vector(path: str | Path) -> SteeringVector:
    """Read a vector file. FileNotFoundError if there is none; ValueError, with the path, if it is
    truncated, of another format, or holds no valid vector."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
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
    about = json.loads(metadata["steerfast"])
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')!r}; this version reads {FORMAT!r}"
        )
    try:
        directions = {int(name.removeprefix("directions.")): t for name, t in tensors.items()}
        norms = {int(layer): norm for layer, norm in about.get("stream_norms", {}).items()}
        return SteeringVector(about["name"], directions, norms, about.get("provenance", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a valid vector: {error!r}") from error


def vector_to_json(vector: SteeringVector) -> dict[str, Any]:
    """The JSON form: values inline, base64 of little-endian float32."""
    directions = {
        str(layer): base64.b64encode(np.asarray(tensor.numpy(), dtype="<f4").tobytes()).decode()
        for layer, tensor in vector.directions.items()
    }
    norms = {str(layer): norm for layer, norm in vector.stream_norms.items()}
    provenance = dict(vector.provenance)
    positions = {} if vector.positions is None else {"positions": vector.positions}
    return {
        "name": vector.name,
        **positions,
        "directions": directions,
        "stream_norms": norms,
        "provenance": provenance,
    }


def vector_from_json(data: dict[str, Any]) -> SteeringVector:
    """The vector of its JSON form; ValueError for anything else."""
    no_other_keys("a vector", data, _VECTOR_KEYS)
    try:
        rows = data.get("positions")
        shape = (-1,) if rows is None else (int(rows), -1)
        directions = {
            int(layer): torch.from_numpy(
                np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").copy()
            ).reshape(shape)
            for layer, text in data["directions"].items()
        }
        norms = {int(layer): float(norm) for layer, norm in data.get("stream_norms", {}).items()}
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "an inline vector has 'directions': {layer: base64 of little-endian float32}, "
            f"and this one cannot be read: {error!r}"
        ) from error
    return SteeringVector(str(data.get("name", "")), directions, norms, data.get("provenance", {}))


def no_other_keys(what: str, data: Mapping[str, object], known: set[str]) -> None:
    """ValueError for a key that is not known: a misspelt one must not be ignored."""
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{what} has unknown keys {unknown}; known: {', '.join(sorted(known))}")
