"""Vectors in ``.pt`` files: CAA, the paper, hotwire, the assistant axis, persona vectors; dicts by layer.

| layout                      | of                                            | number l is                              |
|-----------------------------|-----------------------------------------------|------------------------------------------|
| ``[L, D]``                  | the paper, hotwire, assistant axis            | the output of layer l                    |
| ``[L + 1, D]``, ``*_diff``  | persona vectors                               | ``hidden_states[l]``: input of layer l   |
| ``[D]``, ``vec_layer_l_*``  | CAA, one file a layer                         | the output of layer l, l from the name   |
| ``{l: [D]}``                | steering-vectors' layer_activations, our own  | the output of layer l                    |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerfast.io.formats.found import Found, layer_number, real, rows
from steerfast.io.formats.layers import Convention, LayersAre, from_outputs
from steerfast.io.whole import written_whole
from steerfast.plans.vector import SteeringVector

ROWS = Convention("outputs", "row l is the output of layer l, layers from 0", sure=False)
AXIS = Convention("outputs", "row l is the output of layer l, layers from 0 (assistant axis)")
HIDDEN_STATES = Convention(
    "inputs",
    "row l is hidden_states[l], the input of layer l: the output of layer l - 1 (persona vectors)",
)
ONE = Convention("outputs", "one layer's output, layers from 0 (CAA)")
KEYED = Convention("outputs", "key l is the output of layer l, layers from 0", sure=False)
ACTIVATIONS = Convention(
    "outputs", "key l is the output of layer l, layers from 0 (steering-vectors)"
)
_PERSONA = re.compile(r"(prompt_avg|prompt_last|response_avg)_diff$")
_LAYER = re.compile(r"(?:(?:layer|layers|direction)[._]?)?(0|[1-9]\d{0,3})")
_CAA = re.compile(r"vec_layer_(\d{1,3})(?:_|$)")


def find(tree: Any, stem: str, layer: int | None) -> Found:
    """The directions in what ``torch_file.read_tree`` gave. stem: the file's name without its suffix, which tells persona
    vectors and CAA's apart. layer: of a file with one direction. ValueError for anything else."""
    if isinstance(tree, dict) and "layer_activations" in tree:  # vars() of steering-vectors' object
        check_layer_type(tree.get("layer_type", "decoder_block"))
        return Found("steering-vectors", ACTIVATIONS, keyed(tree["layer_activations"]))
    if isinstance(tree, dict):
        if len(tree) == 1 and _number(next(iter(tree))) is None:
            tree = next(iter(tree.values()))  # {"vector": tensor}: hotwire takes the first
        else:
            return Found("dict of tensors by layer (.pt)", KEYED, keyed(tree))
    if isinstance(tree, (list, tuple)):
        return Found("list of tensors by layer (.pt)", KEYED, keyed(dict(enumerate(tree))))
    if not isinstance(tree, Tensor):
        raise ValueError(
            f"it holds {type(tree).__name__}; a vector is a tensor, or a dict of tensors by layer"
        )
    tensor = real(tree, "its tensor")
    if tensor.ndim == 1:
        named = _CAA.search(stem)
        if layer is None and named is None:
            raise ValueError(
                "it holds one direction and does not say of which layer; give layer=, or keep CAA's name "
                "vec_layer_<layer>_<model>.pt"
            )
        of = int(named[1]) if layer is None and named else layer
        return Found("one direction (.pt)", ONE, {layer_number(of, "it"): tensor})
    if _PERSONA.search(stem):
        return Found("persona vectors (.pt)", HIDDEN_STATES, rows(tensor, "its tensor"))
    convention = AXIS if stem in ("assistant_axis", "axis") else ROWS
    return Found("rows by layer (.pt)", convention, rows(tensor, "its tensor"))


def keyed(given: Any) -> dict[int, Tensor]:
    """{number: [D]} of a dict by layer, whose keys are integers or their text."""
    if not isinstance(given, dict) or not given:
        raise ValueError("it has no directions by layer")
    found: dict[int, Tensor] = {}
    for key, value in given.items():
        number = layer_number(key if _number(key) is None else _number(key), "it")
        if number in found:
            raise ValueError(f"it has layer {number} twice, as a number and as text")
        if not isinstance(value, Tensor):
            raise ValueError(f"layer {number} is {type(value).__name__}; a direction is a tensor")
        found[number] = real(value, f"layer {number}")
    return found


def _number(key: object) -> int | None:
    """The layer that a key names: 12, ``12``, ``layer_12``, ``layers.12``."""
    text = _LAYER.fullmatch(key) if isinstance(key, str) else None
    return key if type(key) is int else int(text[1]) if text else None


def check_layer_type(kind: object) -> None:
    """ValueError for directions of steering-vectors that are no output of a decoder layer."""
    if kind != "decoder_block":
        raise ValueError(
            f"its directions are of layer_type {kind!r:.40}; taken are those of 'decoder_block', outputs of decoder layers"
        )


def write(vector: SteeringVector, path: Path, layers_are: LayersAre) -> None:
    """``[L, D]`` where all layers from 0 on are there (inputs: ``[L + 1, D]`` with zeros for the embeddings, as persona
    vectors have it), else ``{number: [D]}``. Name, stream norms and provenance have no place in it."""
    numbered = from_outputs(vector.directions, layers_are)
    if layers_are == "inputs" and 1 in numbered:
        numbered = {0: torch.zeros_like(numbered[1]), **numbered}
    dense = vector.positions is None and list(numbered) == list(range(len(numbered)))
    content = torch.stack(list(numbered.values())) if dense else numbered
    with written_whole(path) as unfinished:
        torch.save(content, unfinished)
