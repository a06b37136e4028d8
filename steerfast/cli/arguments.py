"""What the command line's arguments mean: layer lists, positions, vectors with coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from steerfast.extraction.extract import Position
from steerfast.io import load, load_vector
from steerfast.plans.operators import OPERATORS
from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector


def parse_layers(text: str) -> tuple[int, ...]:
    """``10,15`` or ``8-12`` or both: the layers, ascending. ValueError otherwise."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            layers.update(range(int(first), int(last) + 1) if dash else [int(first)])
        except ValueError as error:
            raise ValueError(f"layers are written like 10,15 or 8-12, not {text!r}") from error
    if not layers:
        raise ValueError(f"layers {text!r} name no layer")
    return tuple(sorted(layers))


def parse_position(text: str) -> Position:
    """``last``, ``mean`` or an index. ValueError otherwise."""
    if text == "last":
        return "last"
    if text == "mean":
        return "mean"
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"a position is last, mean or a token index, not {text!r}") from error


def parse_vectors(
    texts: Sequence[str],
    scale: Any = None,
    select: Any = "all",
    finish: Any = "none",
    operator: Any = "add",
    told: Callable[[str], None] = lambda note: None,
) -> Plan:
    """A plan from ``FILE:NUMBER[:LAYERS]`` arguments; options as in ``Term`` and ``Plan``, with the same defaults.

    NUMBER is the term's coefficient, or the target of clamp, floor and ceiling. LAYERS: ``10,15``, ``8-12`` or ``all``;
    without it the vector's suggested layer, which ``told`` is told. ValueError for anything else, or an operator that
    needs more than a number.
    """
    takes = OPERATORS.get(operator)
    if takes is not None and not set(takes.required) <= {"target"}:
        raise ValueError(
            f"operator {operator!r} needs {', '.join(takes.required)}; write it as a plan and give --plan"
        )
    number = "target" if takes is not None and takes.required else "coefficient"
    options: dict[str, Any] = {"select": select, "operator": operator}
    if scale is not None:
        options["scale"] = scale
    terms = []
    for text in texts:
        parts = text.split(":")
        if len(parts) not in (2, 3):
            raise ValueError(f"a vector is given as FILE:NUMBER[:LAYERS], not {text!r}")
        try:
            value = float(parts[1])
        except ValueError as error:
            raise ValueError(f"{parts[1]!r} in {text!r} is no {number}; write a number") from error
        given: dict[str, Any] = {number: value, **options}
        vector = _vector(parts[0])
        layers: tuple[int, ...] | None = (vector.suggested_layer,)
        if len(parts) == 3:
            layers = None if parts[2] == "all" else parse_layers(parts[2])
        elif len(vector.layers) > 1:
            told(
                f"{vector.name}: no layer was named, so layer {vector.suggested_layer}, a third of the depth; {text}:all "
                "is every layer"
            )
        terms.append(Term(vector, layers=layers, **given))
    return Plan(tuple(terms), finish)


def _vector(file: str) -> SteeringVector:
    """Of a file of ours, or of another library."""
    vector = load_vector(file) if file.endswith(".safetensors") else load(file)
    if isinstance(vector, Plan):
        raise ValueError(f"{file} holds a plan; give it by --plan, or convert it")
    return vector
