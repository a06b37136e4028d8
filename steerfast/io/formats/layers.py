"""What a layer's number means in a file: converted to ours on the way in, from ours on the way out.

Ours is the output of layer l, layers counted from 0. Every other way of counting in use is the same place under the next
number: the input of layer l + 1, ``hidden_states[l + 1]``, "layer l + 1" where the first is 1. So there are two
conventions, ``outputs`` and ``inputs``, whatever a library calls them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

LayersAre = Literal["outputs", "inputs"]


@dataclass(frozen=True)
class Convention:
    """layers_are: ``outputs`` (number l is the output of layer l, from 0) or ``inputs`` (number l is the input of layer
    l, ``hidden_states[l]``, or layers counted from 1: all are the output of layer l - 1).
    says: in words, for provenance. sure: whether a file of this format cannot mean the other one."""

    layers_are: LayersAre
    says: str
    sure: bool = True


OUTPUTS = Convention("outputs", "number l is the output of layer l, layers from 0")
INPUTS = Convention(
    "inputs", "number l is the input of layer l, layers from 0: the output of layer l - 1"
)


def check_layers_are(given: object) -> None:
    """ValueError for what is neither a convention nor None."""
    if given is not None and given not in get_args(LayersAre):
        raise ValueError(
            f"layers_are is 'outputs' (number l is the output of layer l, from 0) or 'inputs' (its input, "
            f"hidden_states[l], or layers counted from 1), got {given!r:.80}"
        )


def convention_named(given: object) -> Convention:
    """The one that a file of ours names; ValueError as of ``check_layers_are``."""
    check_layers_are(given)
    return OUTPUTS if given == "outputs" else INPUTS


def to_outputs(
    numbered: Mapping[int, Tensor], usual: Convention, given: LayersAre | None, what: str
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Directions by our layers, and the convention as a fact for provenance.

    usual: the format's convention; given: what the caller said, which wins. what: the file, for messages. Warns where
    the format may mean either and nobody said, and where direction 0 is of the embeddings, which no layer puts out.
    ValueError if nothing is left.
    """
    check_layers_are(given)
    convention = usual
    if given is not None and given != usual.layers_are:
        convention = convention_named(given)
    elif given is None and not usual.sure:
        other = "inputs" if usual.layers_are == "outputs" else "outputs"
        warnings.warn(
            f"{what} does not say what its layers mean; taken: {usual.says}. If that is meant, give "
            f"layers_are={usual.layers_are!r}; else layers_are={other!r}",
            stacklevel=2,
        )
    says = {"layer_convention": convention.says}
    if convention.layers_are == "outputs":
        return dict(numbered), says
    if 0 in numbered and bool(numbered[0].any()):
        warnings.warn(
            f"direction 0 of {what} belongs to the embeddings, the input of layer 0, and is left out: a vector holds "
            "outputs of layers; to steer there, make a Term of it with site='resid_pre' and layers=0",
            stacklevel=2,
        )
    moved = {number - 1: direction for number, direction in numbered.items() if number > 0}
    if not moved:
        raise ValueError(
            f"{what} has a direction for the embeddings only, the input of layer 0, which is no layer's output"
        )
    return moved, says


def from_outputs(directions: Mapping[int, Tensor], layers_are: LayersAre) -> dict[int, Tensor]:
    """Directions under the numbers of a convention."""
    shift = 0 if layers_are == "outputs" else 1
    return {layer + shift: direction for layer, direction in directions.items()}
