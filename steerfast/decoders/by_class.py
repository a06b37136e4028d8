"""A survey by class, for a model that cannot be run: what surveys of tiny random models of transformers' classes have found.

``known.json`` beside this file is written by ``make known-decoders``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files
from typing import Any

from torch import nn

from steerfast.decoders.find import Decoder
from steerfast.decoders.norms import NormForm
from steerfast.decoders.survey import Found, Survey
from steerfast.decoders.wiring import Wiring, wiring_from


def class_name(kind: type) -> str:
    """``transformers.models.llama.modeling_llama.LlamaModel``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def as_known(decoder: Decoder, survey: Survey) -> dict[str, Any]:
    """What a survey says of the classes of a decoder: an entry of ``known.json``, under the name of the decoder's class."""
    wirings: dict[str, list[Any]] = {}
    for layer, found in zip(decoder.layers, survey.layers, strict=True):
        seen = wirings.setdefault(class_name(type(layer)), [])
        data = None if found.wiring is None else found.wiring.as_json()
        if data not in seen:
            seen.append(data)
    forms = {class_name(kind): asdict(form) for kind, form in survey.forms.items()}
    return {
        "layers": wirings,
        "forms": forms,
        "norm": survey.norm,
        "in_tuple": any(found.returns_tuple for found in survey.layers),
        "more": any(found.returns_more for found in survey.layers),
        "embedded": survey.embedded,
    }


def survey_by_class(decoder: Decoder) -> Survey | None:
    """The survey of a decoder by its class; None for a class that is not in ``known.json``, or has changed its parts."""
    entry = _known().get(class_name(type(decoder.module)))
    if entry is None:
        return None
    forms = {name: NormForm(**form) for name, form in entry["forms"].items()}
    kinds = {type(part) for part in decoder.module.modules()}
    here = {kind: forms[class_name(kind)] for kind in kinds if class_name(kind) in forms}
    layers = tuple(
        replace(
            _found(layer, entry["layers"]),
            returns_tuple=entry["in_tuple"],
            returns_more=entry["more"],
        )
        for layer in decoder.layers
    )
    norm = entry["norm"]
    form = None if norm is None else here.get(type(decoder.module._modules.get(norm)))
    return Survey(layers, norm, form, here, entry["embedded"], by="class")


def _found(layer: nn.Module, wirings: Mapping[str, list[Any]]) -> Found:
    """The wiring whose parts this layer has: of a hybrid's kinds of layer there is one."""
    known = wirings.get(class_name(type(layer)))
    if known is None:
        return Found(None, f"its class {type(layer).__name__} is not among those that are known")
    fitting = [
        wiring for data in known if data is not None and _has(layer, wiring := wiring_from(data))
    ]
    if len(fitting) == 1 and None not in known:
        return Found(fitting[0])
    return Found(None, "its class alone does not say how it is wired")


def _has(layer: nn.Module, wiring: Wiring) -> bool:
    return all(
        layer._modules.get(name) is not None
        for step in wiring.steps
        for name in (step.before, step.body, *step.after)
        if name is not None
    )


@cache
def _known() -> dict[str, Any]:
    text = files("steerfast.decoders").joinpath("known.json").read_text()
    return json.loads(text)["decoders"]  # type: ignore[no-any-return]
