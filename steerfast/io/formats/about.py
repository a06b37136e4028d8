"""What steerfast writes beside directions in files of other formats, as one JSON text: name, stream norms, provenance."""

from __future__ import annotations

import json
from typing import Any

from steerfast.io.facts import facts_to_json
from steerfast.io.strict import as_layer, as_number, as_object, as_text, parse
from steerfast.plans.vector import SteeringVector

KEY = "steerfast"


def about(vector: SteeringVector) -> dict[str, Any]:
    """Name, stream norms by our layers, provenance; ValueError for facts that JSON does not hold."""
    return {
        "name": vector.name,
        "stream_norms": {str(layer): norm for layer, norm in vector.stream_norms.items()},
        "provenance": facts_to_json(vector.provenance, f"the provenance of vector {vector.name!r}"),
    }


def about_text(vector: SteeringVector) -> str:
    """The same, as text."""
    return json.dumps(about(vector), allow_nan=False)


def read_about(said: object) -> dict[str, Any]:
    """``name``, ``stream_norms`` and ``provenance`` as ``Found`` takes them, of a text or an object that was read."""
    if isinstance(said, str):
        said = parse(said, f"its {KEY!r} facts")
    facts = as_object(said, f"its {KEY!r} facts")
    norms = as_object(facts.get("stream_norms", {}), "'stream_norms'")
    return {
        "name": as_text(facts.get("name"), "a vector's name"),
        "stream_norms": {
            as_layer(layer, "a stream norm"): as_number(norm, f"the stream norm of layer {layer}")
            for layer, norm in norms.items()
        },
        "provenance": as_object(facts.get("provenance", {}), "'provenance'"),
    }
