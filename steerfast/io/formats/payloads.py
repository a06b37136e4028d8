"""JSON with base64 tensors, as requests to other engines carry them: vllm-lens, EasySteer, hotwire.

vllm-lens' is a request with a scale and positions, so it becomes a plan; EasySteer's and hotwire's are directions.
All three add at the output of layer l.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfast.io.formats.found import MOST_VALUES, Found, layer_number, rows
from steerfast.io.formats.layers import Convention
from steerfast.io.strict import as_layer, as_list, as_number, as_object, as_text, as_whole
from steerfast.plans.plan import Plan
from steerfast.plans.selectors import First, Select
from steerfast.plans.term import Term

LENS = Convention(
    "outputs", "layer_indices name layers whose output gets the direction, from 0 (vllm-lens)"
)
EASYSTEER = Convention(
    "outputs", "layer.N is added to the output of layer N, layers from 0 (EasySteer)"
)
HOTWIRE = Convention("outputs", "row l is added to the output of layer l, layers from 0 (hotwire)")
_DTYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "int16": "<i2"}


def kind_of(data: dict[str, Any]) -> str | None:
    """``vllm-lens``, ``EasySteer``, ``hotwire``, or None."""
    if {"activations", "layer_indices"} <= set(data):
        return "vllm-lens"
    if {"kind", "tensors"} <= set(data):
        return "EasySteer"
    return "hotwire" if {"dtype", "shape", "data_b64"} <= set(data) else None


def lens_plan(data: dict[str, Any], name: str) -> Plan:
    """The plan of vllm-lens' ``SteeringVector``: its scale is the coefficient, ``norm_match`` the finish ``preserve``, and
    [layers, T, D] is by position from 0 on."""
    values = _lens_tensor(as_object(data["activations"], "'activations'"))
    layers = [
        layer_number(as_whole(one, "'layer_indices'"), "it")
        for one in as_list(data["layer_indices"], "'layer_indices'")
    ]
    if (
        values.ndim not in (2, 3)
        or len(values) != len(layers)
        or len(set(layers)) != len(layers)
        or not layers
    ):
        raise ValueError(
            f"its activations of shape {list(values.shape)} are not [layers, D] or [layers, T, D] of layers {layers}"
        )
    positions = data.get("position_indices")
    by_position = values.ndim == 3
    if positions is not None and (not by_position or positions != list(range(values.shape[1]))):
        raise ValueError(
            "its position_indices are not 0, 1, 2, ...; make a term a position, with Positions(t, t + 1)"
        )
    found = Found("vllm-lens payload", LENS, dict(zip(layers, values, strict=True)))
    norm_match = data.get("norm_match", False)
    if not isinstance(norm_match, bool):
        raise ValueError(f"'norm_match' is true or false, got {norm_match!r:.40}")
    vector = found.vector(name, None, "it")
    scale = as_number(data.get("scale", 1.0), "'scale'")
    select: Select = First(values.shape[1]) if by_position else "all"
    return Plan((Term(vector, scale, select=select),), "preserve" if norm_match else "none")


def directions(data: dict[str, Any]) -> Found:
    """The directions of an EasySteer payload of kind ``direction``, or of a tensor as hotwire writes it."""
    if kind_of(data) == "hotwire":
        values = _decoded(data["data_b64"], data["dtype"], data["shape"], "its tensor")
        return Found("hotwire payload", HOTWIRE, rows(values, "its tensor"))
    if data["kind"] != "direction":
        raise ValueError(f"it is a payload of kind {data['kind']!r:.40}; taken are directions")
    numbered: dict[int, Tensor] = {}
    for key, entry in as_object(data["tensors"], "'tensors'").items():
        what = f"tensor {key[:80]!r}"
        if not key.startswith("layer."):
            raise ValueError(f"it has {what}; directions are 'layer.<number>'")
        tensor = as_object(entry, what)
        number = layer_number(as_layer(key.removeprefix("layer."), what), what)
        numbered[number] = _decoded(tensor.get("data"), "float32", tensor.get("shape"), what)
    return Found("EasySteer payload", EASYSTEER, numbered)


def _lens_tensor(entry: dict[str, Any]) -> Tensor:
    original = entry.get("original_dtype")
    values = _decoded(
        entry.get("data"),
        entry.get("dtype", "float32"),
        entry.get("shape"),
        "'activations'",
        entry.get("compression"),
    )
    if original == "torch.bfloat16":
        values = values.to(torch.int16).view(torch.bfloat16).float()
    elif values.dtype == torch.int16:
        raise ValueError(
            f"'activations' are int16 of {original!r:.40}; only bfloat16 is stored like that"
        )
    return values.float()


def _decoded(
    text: object, dtype: object, shape: object, what: str, compression: object = None
) -> Tensor:
    """The tensor of base64 text; its shape must be that of the bytes there are."""
    lengths = [
        as_whole(one, f"the shape of {what}") for one in as_list(shape, f"the shape of {what}")
    ]
    bfloat = dtype == "bfloat16"
    code = "<i2" if bfloat else _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if code is None:
        raise ValueError(
            f"{what} is of type {dtype!r:.40}; read are bfloat16, {', '.join(_DTYPES)}"
        )
    count = math.prod(lengths)
    if not 0 < count <= MOST_VALUES:
        raise ValueError(f"{what} has the shape {lengths}; a vector has 1 to {MOST_VALUES} values")
    size = count * np.dtype(code).itemsize
    try:
        raw = base64.b64decode(as_text(text, what), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{what} is not base64: {error}") from error
    if compression is not None:
        raw = _unpacked(raw, compression, size, what)
    if len(raw) != size:
        raise ValueError(f"{what} of shape {lengths} takes {size} bytes, but there are {len(raw)}")
    values = torch.from_numpy(np.frombuffer(raw, code).reshape(lengths).copy())
    return values.view(torch.bfloat16).float() if bfloat else values


def _unpacked(raw: bytes, compression: object, size: int, what: str) -> bytes:
    """zstd, to no more bytes than the shape has."""
    if compression != "zstd":
        raise ValueError(f"{what} is compressed by {compression!r:.40}; known is zstd")
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(
            f"{what} is compressed by zstd; pip install zstandard, or send it uncompressed"
        ) from error
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(raw)
        return reader.read(size + 1)  # type: ignore[no-any-return]
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"{what} cannot be unpacked: {error}") from error
