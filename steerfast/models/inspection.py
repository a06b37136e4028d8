"""What a model is to steerfast, as plain data: how its layers are wired and patched, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from steerfast.decoders.find import META, Decoder, find_decoder
from steerfast.decoders.look import look
from steerfast.decoders.norms import NormForm
from steerfast.decoders.survey import Found, Survey
from steerfast.decoders.wiring import Wiring
from steerfast.ops import backends
from steerfast.ops.implementations import implementation

OWN = "its own forward"  # of a norm that no kernel stands in for


def inspect_model(model: nn.Module, *, prove: bool = True) -> dict[str, Any]:
    """The facts that ``steerfast inspect-model`` prints.

    model, decoder: classes. path: of the decoder in the model. layers, hidden_size: numbers. fused: of the layers. by: "proof"
    on a few tokens, or "class". kinds: layers that are alike, each with its form, formula, sites, norms
    and, where it is steered behind its own forward, the reason. final_norm: its name and form, or None. embedded: whether
    the embeddings enter the first layer as they are. summary: a line for each way in which layers are steered.

    prove: as in ``attach``. The model is left as it was. Raises what ``attach`` raises for a model without a decoder.
    """
    decoder = find_decoder(model)
    weight = next(decoder.module.parameters())
    device = torch.device("cpu") if weight.device == META else weight.device
    wanted = "reference" if weight.dtype is torch.float64 else None
    survey = look(decoder, implementation(backends.resolve(wanted, device)), prove=prove)
    return {
        "model": type(model).__name__,
        "decoder": type(decoder.module).__name__,
        "path": decoder.path.rstrip("."),
        "layers": len(survey.layers),
        "hidden_size": decoder.hidden_size,
        "fused": survey.fused,
        "by": survey.by,
        "kinds": _kinds(decoder, survey),
        "final_norm": _final_norm(decoder, survey),
        "embedded": survey.embedded,
        "summary": survey.summary(),
    }


def _kinds(decoder: Decoder, survey: Survey) -> list[dict[str, Any]]:
    alike: dict[tuple[type, Wiring | None, str], list[int]] = {}
    for number, (layer, found) in enumerate(zip(decoder.layers, survey.layers, strict=True)):
        alike.setdefault((type(layer), found.wiring, found.reason), []).append(number)
    return [
        {"layers": numbers, **_kind(decoder.layers[numbers[0]], survey.layers[numbers[0]], survey)}
        for numbers in alike.values()
    ]


def _kind(layer: nn.Module, found: Found, survey: Survey) -> dict[str, Any]:
    wiring = found.wiring
    if wiring is None:
        sites, norms = ["resid_pre", "resid_post"], {}
    else:
        sites = ["resid_pre", *(["resid_mid"] if wiring.has_mid else []), "resid_post"]
        norms = _norms(layer, wiring, survey.forms)
    return {
        "class": type(layer).__name__,
        "form": None if wiring is None else wiring.form,
        "formula": None if wiring is None else str(wiring),
        "reason": found.reason,
        "sites": sites,
        "norms": norms,
    }


def _norms(layer: nn.Module, wiring: Wiring, forms: Mapping[type, NormForm]) -> dict[str, str]:
    """{the layer's name for it: its class and what it computes} of what stands before and behind the branches."""
    names = [name for step in wiring.steps for name in (step.before, *step.after) if name]
    parts = {name: layer.get_submodule(name) for name in names}
    return {name: _described(part, forms.get(type(part))) for name, part in parts.items()}


def _final_norm(decoder: Decoder, survey: Survey) -> dict[str, str] | None:
    if survey.norm is None:
        return None
    part = decoder.module.get_submodule(survey.norm)
    return {"name": survey.norm, "form": _described(part, survey.norm_form)}


def _described(part: nn.Module, form: NormForm | None) -> str:
    return f"{type(part).__name__}, {OWN if form is None else form}"
