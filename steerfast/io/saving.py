"""``save``: a vector or a plan in a format that other libraries read."""

from __future__ import annotations

import warnings
from pathlib import Path

from steerfast.io.formats import arrays, control_vector, pt_vectors, svec
from steerfast.io.formats.found import MOST_LAYERS
from steerfast.io.formats.layers import LayersAre, check_layers_are
from steerfast.io.plans import save_plan
from steerfast.io.vectors import save_vector
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

SUFFIXES = (".safetensors", ".gguf", ".npz", ".pt", ".svec")


def save(
    x: SteeringVector | Plan, path: str | Path, *, layers_are: LayersAre | None = None
) -> Path:
    """Write a vector (``.safetensors``, ``.gguf``, ``.npz``, ``.pt`` or ``.svec``) or a plan (``.json``); returns the path.

    layers_are: of ``.npz``, ``.pt`` and ``.svec``: what a number in the file is to mean, ``outputs`` (default) or
        ``inputs``, for a reader that counts like that (activation-steering, persona vectors).

    The file appears whole or not at all. safetensors, ``.npz`` and ``.svec`` hold everything; GGUF has no layer 0 (llama.cpp
    refuses it, a warning says so); ``.pt`` has no place for name, stream norms and provenance. ValueError for another
    suffix, for facts that JSON does not hold, and for what a format cannot say. TypeError for anything else than the two.
    """
    path = Path(path)
    check_layers_are(layers_are)
    if isinstance(x, Plan):
        if layers_are is not None:
            raise ValueError("a plan's layers are outputs; leave out layers_are")
        return save_plan(x, path)
    if not isinstance(x, SteeringVector):
        raise TypeError(f"save writes a SteeringVector or a Plan, got {type(x).__name__}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"a vector is written as {', '.join(SUFFIXES)}, and {path.name!r} names none of them"
        )
    if suffix in (".safetensors", ".gguf"):
        if layers_are == "inputs":
            raise ValueError(f"the layers of a {suffix} are outputs; leave out layers_are")
        if suffix == ".safetensors":
            return save_vector(x, path)
    last = max(x.directions) + (layers_are == "inputs")
    if last >= MOST_LAYERS:
        raise ValueError(
            f"{x.name!r} would be written with layer {last}, and layers beyond {MOST_LAYERS - 1} are taken for a fault of the "
            "file when it is read; .safetensors holds them"
        )
    if suffix == ".gguf":
        control_vector.write(x, path)
    elif suffix == ".npz":
        arrays.write(x, path, layers_are or "outputs")
    elif suffix == ".svec":
        svec.write(x, path, layers_are or "outputs")
    else:
        if x.stream_norms:
            warnings.warn(
                f"a .pt has no place for the stream norms of {x.name!r}; .npz has", stacklevel=2
            )
        pt_vectors.write(x, path, layers_are or "outputs")
    return path
