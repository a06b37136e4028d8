"""``load``: a vector or a plan from anywhere, at the layers it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfast.io.formats import (
    arrays,
    capping,
    control_vector,
    estimators,
    payloads,
    pt_vectors,
    sae,
    svec,
)
from steerfast.io.formats.found import Found
from steerfast.io.formats.layers import LayersAre, check_layers_are
from steerfast.io.formats.npz import RangedArrays
from steerfast.io.formats.ranged_safetensors import RangedSafetensors
from steerfast.io.formats.sae_layouts import SIDECARS, is_sae
from steerfast.io.formats.torch_file import read_tree
from steerfast.io.formats.torch_tensors import TorchTensors
from steerfast.io.places import Place, place_of
from steerfast.io.plans import load_plan
from steerfast.io.strict import as_object, parse, read
from steerfast.io.vectors import load_vector, vector_from_json
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

SUFFIXES = (".safetensors", ".gguf", ".pt", ".pth", ".npz", ".npy", ".svec", ".json")


class Wanted:
    """What the caller said beside the source."""

    def __init__(
        self,
        name: str | None,
        layer: int | None,
        layers_are: LayersAre | None,
        target: float | None,
    ) -> None:
        check_layers_are(layers_are)
        self.name, self.layer, self.layers_are, self.target = name, layer, layers_are, target

    def vector(self, found: Found, place: str, stem: str) -> SteeringVector:
        """What a reader has found, as a vector."""
        self._check(list(found.numbered))
        return self._named(found.vector(self.name or stem, self.layers_are, place))

    def native(self, vector: SteeringVector) -> SteeringVector:
        """A vector of steerfast's own file."""
        self._check(list(vector.directions))
        return self._named(vector)

    def _check(self, numbers: list[int]) -> None:
        """ValueError for what was said beside a vector that is none of its, or that it says itself."""
        if self.target is not None:
            raise ValueError(
                "a target belongs to a feature of an SAE, and this is a vector; make a Term with it"
            )
        if self.layer is not None and numbers != [self.layer]:
            said = ", ".join(map(str, sorted(numbers)[:8])) + (", ..." if len(numbers) > 8 else "")
            raise ValueError(
                f"it says its layers itself ({said}), so that layer={self.layer} means nothing; leave it out, and take one layer by "
                "vector.select([...])"
            )

    def _named(self, vector: SteeringVector) -> SteeringVector:
        return vector if self.name is None else replace(vector, name=self.name)


def load(
    source: Any,
    *,
    name: str | None = None,
    layer: int | None = None,
    layers_are: LayersAre | None = None,
    target: float | None = None,
) -> SteeringVector | Plan:
    """A vector or a plan, from a file of any library, an address, or an object in memory.

    source: a path or address (``joy.gguf``, ``hf://owner/repo/file``, ``https://...``), with ``#part`` where a file holds
        several: the number of an SAE's feature, an array of an ``.npz``, an experiment of a capping configuration. Or a
        tensor or array ``[layers, D]``, a dict {layer: tensor}, a fitted linear probe of scikit-learn or {layer: probe},
        a SteeringVector of steering-vectors, a ControlVector of repeng.
    name: of the vector; default what the file says, else its own name.
    layer: of what has one direction and does not say where: a [D] tensor, a probe, an SAE.
    layers_are: what a number of the file means: ``outputs`` (of layer l, from 0) or ``inputs`` (of layer l,
        ``hidden_states[l]``, layers from 1). Default: the format's convention, with a warning where it has two.
    target: for a feature of an SAE: a plan that clamps the feature there, instead of its direction.

    Returns a SteeringVector, whose provenance has ``format`` and ``layer_convention``; a Plan for a plan's file, a clamped
    feature, a capping configuration, or vllm-lens' payload. Nothing in a file is ever run. FileNotFoundError if there is
    none; ValueError, with the place and the reason, for what is not read; OSError for a server that cannot be reached.
    """
    wanted = Wanted(name, layer, layers_are, target)
    if not isinstance(source, (str, Path)):
        return wanted.vector(_of_object(source, layer), type(source).__name__, "vector")
    place, part = place_of(source)
    short = PurePosixPath(place.path.partition("?")[0])
    try:
        return _of_place(place, part, short, wanted)
    except ValueError as error:
        raise ValueError(f"{place.path} cannot be loaded: {error}") from error


def _of_place(
    place: Place, part: str | None, short: PurePosixPath, wanted: Wanted
) -> SteeringVector | Plan:
    suffix = short.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"its name ends in {suffix!r}, which is no format that is known: {', '.join(SUFFIXES)}"
        )
    if part is not None and part.isdecimal() and suffix in _TENSORS and len(part) < 10:
        with ExitStack() as opened:
            file = _TENSORS[suffix](place, opened)
            if is_sae(file.shapes):
                return _feature(file, place, short, int(part), wanted)
    with ExitStack() as opened:
        path = opened.enter_context(place.file())
        return _of_file(path, part, short, suffix, place, wanted)


def _of_file(
    path: Path, part: str | None, short: PurePosixPath, suffix: str, place: Place, wanted: Wanted
) -> SteeringVector | Plan:
    if suffix in (".pt", ".pth"):
        tree = read_tree(path)
        if capping.is_capping(tree):
            return capping.capping_plan(tree, part)
        if isinstance(tree, dict) and is_sae(TorchTensors.of(tree).shapes):
            raise ValueError("it is an SAE; write '#' and the number of a feature behind it")
        if part is not None and isinstance(tree, dict) and isinstance(tree.get(part), Tensor):
            tree = tree[part]
            part = None
        _no_part(part)
        return wanted.vector(
            pt_vectors.find(tree, short.stem, wanted.layer), place.path, short.stem
        )
    if suffix == ".npz":
        found = arrays.read_npz_vectors(path, part)
        return wanted.vector(found, place.path, short.stem)
    _no_part(part)
    if suffix == ".safetensors":
        return _native(path, wanted)
    if suffix == ".json":
        return _json(path, short, place, wanted)
    if suffix == ".gguf":
        found = control_vector.read(path)
    elif suffix == ".svec":
        found = svec.read_svec(path)
    else:
        found = arrays.read_npy_vector(path, wanted.layer)
    return wanted.vector(found, place.path, short.stem)


def _no_part(part: str | None) -> None:
    if part is not None:
        raise ValueError(
            f"it has no parts, so nothing is {part[:80]!r} in it; leave out '#' and what follows"
        )


def _native(path: Path, wanted: Wanted) -> SteeringVector:
    from steerfast.io.byte_ranges import LocalRanges

    with RangedSafetensors(LocalRanges(path)) as file:
        if "steerfast" not in file.metadata and is_sae(file.shapes):
            raise ValueError("it is an SAE; write '#' and the number of a feature behind it")
    if wanted.layers_are == "inputs":
        raise ValueError(
            "its layers are outputs, as every steerfast vector's; leave out layers_are"
        )
    return wanted.native(load_vector(path))


def _json(path: Path, short: PurePosixPath, place: Place, wanted: Wanted) -> SteeringVector | Plan:
    data = as_object(read(path, "a plan or a vector"), "a plan or a vector")
    kind = payloads.kind_of(data)
    if "terms" in data:
        return load_plan(path)
    if kind == "vllm-lens":
        return payloads.lens_plan(data, wanted.name or short.stem)
    if kind is not None:
        return wanted.vector(payloads.directions(data), place.path, short.stem)
    directions = data.get("directions")
    if isinstance(directions, dict) and any(
        isinstance(value, list) for value in directions.values()
    ):
        return wanted.vector(svec.find(data), place.path, short.stem)
    if isinstance(directions, dict):
        return wanted.native(vector_from_json(data))
    raise ValueError(f"it holds neither a plan nor a vector; its keys are {', '.join(data)[:200]}")


def _feature(
    file: Any, place: Place, short: PurePosixPath, feature: int, wanted: Wanted
) -> SteeringVector | Plan:
    if wanted.layers_are is not None:
        raise ValueError(
            "an SAE says which place it reads; leave out layers_are, and give layer= as a layer's output"
        )
    sidecar: dict[str, Any] = {}
    for name in SIDECARS:
        found = place.beside(name)
        if found is not None:
            sidecar = {**as_object(parse(found, name), name), **sidecar}
    suffix = short.suffix.lower()
    one = sae.Sae(file, place.path, suffix, short.stem, sidecar)
    name = wanted.name or f"{short.stem}#{feature}"
    if wanted.target is None:
        return one.direction(feature, wanted.layer, name)
    return one.clamp(feature, wanted.target, wanted.layer, name)


def _of_object(source: Any, layer: int | None) -> Found:
    """Directions of an object in memory."""
    if isinstance(source, (SteeringVector, Plan)):
        raise TypeError(f"load reads what others made; this is a {type(source).__name__} already")
    if isinstance(source, (Tensor, np.ndarray)):
        array = (
            source.detach().to("cpu", torch.float32).numpy()
            if isinstance(source, Tensor)
            else source
        )
        return arrays.of_array(array, layer, "it")
    activations = getattr(source, "layer_activations", None)
    if isinstance(activations, dict):  # of steering-vectors
        pt_vectors.check_layer_type(getattr(source, "layer_type", "decoder_block"))
        return Found("steering-vectors", pt_vectors.ACTIVATIONS, pt_vectors.keyed(activations))
    directions = getattr(source, "directions", None)
    if isinstance(directions, dict):  # repeng's ControlVector, EasySteer's StatisticalControlVector
        if getattr(source, "component", None) not in (None, "hidden_states"):
            raise ValueError(f"its directions are of {source.component!r}, not of hidden states")
        return Found(
            "control vector object",
            control_vector.CONVENTION,
            pt_vectors.keyed(_tensors(directions)),
        )
    if estimators.is_estimator(source):
        if layer is None:
            raise ValueError(
                "a probe does not know which layer's output it was fitted on; give layer="
            )
        return estimators.directions({layer: source})
    if (
        isinstance(source, Mapping)
        and source
        and all(estimators.is_estimator(one) for one in source.values())
    ):
        return estimators.directions(source)
    if isinstance(source, Mapping):
        return Found("dict by layer", pt_vectors.KEYED, pt_vectors.keyed(_tensors(source)))
    raise TypeError(
        f"load takes a path, an address, an array, a dict by layer or a probe, got {type(source).__name__}"
    )


def _tensors(given: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: torch.from_numpy(one) if isinstance(one, np.ndarray) else one
        for key, one in given.items()
    }


def _safetensors(place: Place, opened: ExitStack) -> Any:
    return opened.enter_context(RangedSafetensors(place.ranges()))


def _npz(place: Place, opened: ExitStack) -> Any:
    return opened.enter_context(RangedArrays(place.ranges()))


def _torch(place: Place, opened: ExitStack) -> Any:
    return TorchTensors.of(read_tree(opened.enter_context(place.file())))


_TENSORS: dict[str, Callable[[Place, ExitStack], Any]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
}
