"""Sparse autoencoders: what their tensors are called, and what their encoder does, by family.

z = <h, e> + b of a feature, with e its encoder direction; f = z where z > threshold, else 0; the stream gets f d, with d
its decoder direction. Which axis of a matrix counts features follows from the lengths of the two biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Activation = Literal["jumprelu", "relu", "topk", "unknown"]


@dataclass(frozen=True)
class Layout:
    """The names of an SAE's tensors. centred: its encoder reads h - b_dec. log_threshold: the file has its logarithm.
    activation: of topk a feature is active only among the k greatest, which one feature alone cannot know."""

    family: str
    encoder: str
    decoder: str
    encoder_bias: str
    decoder_bias: str
    threshold: str | None
    activation: Activation
    centred: bool = False
    log_threshold: bool = False


_Names = tuple[str, str, str, str]
_NAMES: dict[str, _Names] = {
    "Gemma Scope 2": ("w_enc", "w_dec", "b_enc", "b_dec"),
    "W_enc": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "Llama Scope": ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"),
    "dictionary_learning": ("encoder.weight", "decoder.weight", "encoder.bias", "bias"),
    "dictionary_learning top-k": ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec"),
    "Goodfire": (
        "encoder_linear.weight",
        "decoder_linear.weight",
        "encoder_linear.bias",
        "decoder_linear.bias",
    ),
}
_THRESHOLDS = ("threshold", "log_jumprelu_threshold")
_GATED = ("gate_bias", "r_mag", "mag_bias", "b_gate")
# Files beside the weights that say which layer and what encoder; relative to them.
SIDECARS = ("config.json", "cfg.json", "hyperparams.json", "../hyperparams.json")


def is_sae(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file's tensors are those of a known family."""
    return any(set(names) <= set(shapes) for names in _NAMES.values())


def layout_of(
    shapes: Mapping[str, tuple[int, ...]], suffix: str, stem: str, sidecar: Mapping[str, Any]
) -> Layout:
    """The layout of an SAE, by its tensors, then by the kind of file, its name, and what lies beside it."""
    family = next((name for name, names in _NAMES.items() if set(names) <= set(shapes)), None)
    if family is None:
        known = "; ".join(", ".join(names) for names in _NAMES.values())
        raise ValueError(
            f"its tensors ({', '.join(shapes)[:200]}) are those of no SAE that is known: {known}"
        )
    names = _NAMES[family]
    threshold = next((name for name in _THRESHOLDS if name in shapes), None)
    if any(name in shapes for name in _GATED):
        return Layout("dictionary_learning gated", *names, None, "unknown", centred=True)
    if family == "Llama Scope":
        return Layout(family, *names, threshold, "jumprelu", log_threshold=threshold is not None)
    if family == "Goodfire":
        return Layout(family, *names, None, "relu")
    if family == "dictionary_learning":
        return Layout(family, *names, None, "relu", centred=True)
    if family == "dictionary_learning top-k":
        batch = _dict_class(sidecar) in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
        kept = threshold if batch else None
        return Layout(family, *names, kept, "jumprelu" if kept else "topk", centred=True)
    if family == "W_enc":
        return _upper(names, threshold, shapes, suffix, stem, sidecar)
    return Layout(family, *names, threshold, "jumprelu" if threshold else "relu")


def _upper(
    names: _Names,
    threshold: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    suffix: str,
    stem: str,
    sidecar: Mapping[str, Any],
) -> Layout:
    """Four families call their tensors W_enc, W_dec, b_enc, b_dec."""
    active: Activation = "jumprelu" if threshold else "relu"
    if suffix == ".npz":
        return Layout("Gemma Scope 1", *names, threshold, active)
    if suffix == ".safetensors":
        kind = str(sidecar.get("architecture", "jumprelu" if threshold else "standard"))
        active = {"jumprelu": "jumprelu", "standard": "relu", "topk": "topk"}.get(kind, "unknown")  # type: ignore[assignment]
        centred = sidecar.get("apply_b_dec_to_input") is True
        return Layout(
            "SAELens", *names, threshold if active == "jumprelu" else None, active, centred
        )
    if re.fullmatch(r"layer\d+\.sae", stem):
        return Layout("Qwen-Scope", *names, None, "topk")
    matryoshka = _dict_class(sidecar) == "MatryoshkaBatchTopKSAE" or shapes.get("threshold") == ()
    return Layout("dictionary_learning", *names, threshold, active, centred=matryoshka)


def _dict_class(sidecar: Mapping[str, Any]) -> object:
    trainer = sidecar.get("trainer")
    return trainer.get("dict_class") if isinstance(trainer, dict) else None


_HOOKS = (  # of what a sidecar says; the last group of the place is where in the layer
    re.compile(r"blocks\.(\d+)\.(?:hook_)?(resid_pre|resid_mid|resid_post|\S+)"),
    re.compile(r"model\.layers\.(\d+)\.(output|input|\S+)"),
    re.compile(r"model\.layers\.(\d+)()$"),
)
_PATHS = (
    re.compile(r"layer_?(\d+)"),
    re.compile(r"(?:^|[-/])L(\d+)R"),  # Llama Scope's residual stream
    re.compile(r"SAE-l(\d+)"),  # Goodfire
)
_ELSEWHERE = re.compile(
    r"attn_out|mlp_out|transcoder|clt|hook_z|hook_mlp|self_attn|layernorm|L\d+[AMT](?:C|-|/|$)"
)


def layer_of(path: str, sidecar: Mapping[str, Any]) -> int:
    """The layer whose output the SAE reads and writes: of what its sidecar says, else of its path. ValueError for an SAE
    of another place, and where neither names a layer."""
    for hook in _hooks(sidecar):
        for pattern in _HOOKS:
            match = pattern.search(hook)
            if match is None:
                continue
            number, place = int(match[1]), match[2]
            if place in ("resid_post", "output", ""):
                return number
            if place in ("resid_pre", "input") and number > 0:
                return number - 1
            raise ValueError(
                f"it is an SAE of {hook[:80]!r}; taken are those of the residual stream at a layer's output"
            )
    trainer = sidecar.get("trainer")
    if isinstance(trainer, dict) and type(trainer.get("layer")) is int:
        return int(trainer["layer"])
    if _ELSEWHERE.search(path):
        raise ValueError(
            f"{path[:120]!r} is no SAE of the residual stream; taken are those of a layer's output"
        )
    found = {int(match[1]) for pattern in _PATHS for match in pattern.finditer(path)}
    if len(found) != 1:
        raise ValueError(
            f"neither {path[:120]!r} nor what lies beside it says which layer's output it reads; give layer="
        )
    return found.pop()


def _hooks(sidecar: Mapping[str, Any]) -> list[str]:
    inner = sidecar.get("metadata")
    places = [sidecar, inner if isinstance(inner, dict) else {}]
    keys = ("hook_name", "hook_point_in", "hf_hook_point_in", "hook_point")
    return [place[key] for place in places for key in keys if isinstance(place.get(key), str)]


def model_of(sidecar: Mapping[str, Any]) -> str | None:
    """The model's name, where the sidecar has one."""
    for place in (sidecar, sidecar.get("metadata"), sidecar.get("trainer")):
        if isinstance(place, dict):
            for key in ("model_name", "lm_name"):
                if isinstance(place.get(key), str):
                    return str(place[key])
    return None


def input_scale(layout: Layout, sidecar: Mapping[str, Any], size: int) -> float | None:
    """What Llama Scope multiplies streams by before it encodes them: sqrt(D) / their mean norm. None where the file
    beside it is missing; 1 for the others."""
    if layout.family != "Llama Scope":
        return 1.0
    norms = sidecar.get("dataset_average_activation_norm")
    value = norms.get("in") if isinstance(norms, dict) else None
    if value is None:
        return (
            1.0
            if sidecar.get("norm_activation") in ("inference", None)
            and layout.log_threshold
            and sidecar
            else None
        )
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value < float("inf")
    ):
        raise ValueError(f"its mean activation norm is {value!r:.40}; it is a positive number")
    return float(size**0.5 / value)
