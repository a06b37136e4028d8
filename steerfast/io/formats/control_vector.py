"""GGUF control vectors: llama.cpp, repeng, EasySteer. Tensors ``direction.N``, float32 [D].

N is the layer whose output gets the direction, counted from 0. llama.cpp never steers the output of layer 0, and refuses
a file that names it. The header is read here: the ``gguf`` package's reader maps a file and believes it, so that an array
that claims 2^60 elements keeps it busy for ever. What is written, that package writes.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfast.io.formats.about import KEY, about_text, read_about
from steerfast.io.formats.found import MOST_LAYERS, Found, layer_number
from steerfast.io.formats.layers import Convention
from steerfast.io.strict import as_layer, as_object, parse
from steerfast.io.whole import written_whole
from steerfast.plans.vector import SteeringVector

FORMAT = "GGUF control vector"
CONVENTION = Convention(
    "outputs",
    "direction.N is added to the output of layer N, layers from 0; llama.cpp leaves layer 0 alone",
)
ARCHITECTURE = "controlvector"
OWN = f"{ARCHITECTURE}.{KEY}"  # name, stream norms and provenance, as JSON
EASYSTEER = f"{ARCHITECTURE}.easysteer"
LARGEST = 2**30  # bytes of a file
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
}  # of GGML; no other is a direction's


class _Header:
    """The bytes of a file, read from front to back; nothing beyond their end is ever believed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it is cut off, or lies about its sizes: {what} does not fit into it")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not text in UTF-8: {error}") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """A metadata value; arrays are read over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth > 4:
            raise ValueError(f"{what} is of a kind that is not known: {kind}")
        inner, count = self.number("<I", what), self.number("<Q", what)
        if inner in _SCALARS:
            self.take(struct.calcsize(_SCALARS[inner]) * count, what)
            return None
        for _ in range(count):  # each takes bytes of the file, so the file's size bounds this
            self.value(inner, what, depth + 1)
        return None


def read(path: Path) -> Found:
    """The directions of a file; ValueError for what is no control vector."""
    if path.stat().st_size > LARGEST:
        raise ValueError(
            f"it has {path.stat().st_size} bytes; a control vector has at most {LARGEST}"
        )
    head = _Header(path.read_bytes())
    if head.data[:4] != _MAGIC:
        raise ValueError("it is no GGUF file")
    head.at = 4
    version = head.number("<I", "its version")
    if version not in _VERSIONS:
        raise ValueError(f"it is GGUF version {version}; read are {_VERSIONS}, little-endian")
    tensors, pairs = (
        head.number("<Q", "its count of tensors"),
        head.number("<Q", "its count of facts"),
    )
    facts: dict[str, Any] = {}
    for _ in range(pairs):
        key = head.text("a fact's key")
        if key in facts:
            raise ValueError(f"it has the fact {key[:80]!r} twice")
        facts[key] = head.value(head.number("<I", "a fact's kind"), f"the fact {key[:80]!r}")
    _check_kind(facts)
    if tensors > MOST_LAYERS:
        raise ValueError(f"it has {tensors} tensors; a control vector has at most {MOST_LAYERS}")
    places = [_place(head) for _ in range(tensors)]
    numbered = _directions(head, places, facts.get("general.alignment", 32))
    return Found(FORMAT, CONVENTION, numbered, **_about(facts))


def _check_kind(facts: dict[str, Any]) -> None:
    kind = facts.get("general.architecture")
    if kind != ARCHITECTURE:
        raise ValueError(
            f"its architecture is {str(kind)[:40]!r}; a control vector's is {ARCHITECTURE!r}"
        )
    component: Any = None
    if isinstance(facts.get(EASYSTEER), str):
        component = as_object(
            parse(facts[EASYSTEER], "EasySteer's facts"), "EasySteer's facts"
        ).get("component")
    if component not in ("hidden_states", None):
        raise ValueError(
            f"its directions are of EasySteer's component {component!r:.40}, not of hidden states; of attention heads "
            "take the tensors to steerfast.io.formats.heads.from_heads, with the model"
        )


def _place(head: _Header) -> tuple[int, int, int, int]:
    """(N, values, GGML's type, offset) of one tensor."""
    name = head.text("a tensor's name")
    prefix, _, number = name.partition(".")
    if prefix != "direction":
        raise ValueError(f"it has a tensor {name[:80]!r}; a control vector's are 'direction.N'")
    layer = layer_number(as_layer(number, f"tensor {name[:80]!r}"), f"tensor {name[:80]!r}")
    dimensions = head.number("<I", f"tensor {name!r}")
    if dimensions != 1:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions; a direction has one")
    size = head.number("<Q", f"tensor {name!r}")
    kind = head.number("<I", f"tensor {name!r}")
    if kind not in _DTYPES:
        raise ValueError(
            f"tensor {name!r} is of GGML's type {kind}; a direction is F32 (0) or F16 (1)"
        )
    return layer, size, kind, head.number("<Q", f"tensor {name!r}")


def _directions(
    head: _Header, places: list[tuple[int, int, int, int]], alignment: Any
) -> dict[int, Tensor]:
    if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
        raise ValueError(
            f"its alignment is {alignment!r:.40}, which is no power of two up to 65536"
        )
    begin = -(-head.at // alignment) * alignment
    numbered: dict[int, Tensor] = {}
    for layer, size, kind, offset in places:
        if layer in numbered:
            raise ValueError(f"it has direction.{layer} twice")
        dtype = _DTYPES[kind]
        at = begin + offset
        if at + size * dtype.itemsize > len(head.data) or not size:
            raise ValueError(
                f"direction.{layer} lies outside of the file, of which it is said to be {size} values at {at}"
            )
        values = np.frombuffer(head.data, dtype, size, at).astype(np.float32)
        numbered[layer] = torch.from_numpy(values)
    if bool(0 in numbered and numbered[0].any()):
        warnings.warn(
            "the file has a direction.0, which llama.cpp refuses and repeng adds to the output of layer 0",
            stacklevel=2,
        )
    return numbered


def _about(facts: dict[str, Any]) -> dict[str, Any]:
    """Name, stream norms, provenance: ours where we wrote the file, else what the others say."""
    if isinstance(facts.get(OWN), str):
        return read_about(facts[OWN])
    said = {key: facts.get(f"{ARCHITECTURE}.{key}") for key in ("model_hint", "method")}
    return {"provenance": {key: value for key, value in said.items() if isinstance(value, str)}}


def write(vector: SteeringVector, path: Path) -> None:
    """As llama.cpp loads it: without layer 0, with a warning. ValueError for a positional vector or one of layer 0 only."""
    import gguf

    if vector.positions is not None:
        raise ValueError(
            "a control vector has no positions; write the positional vector as .safetensors"
        )
    kept = {layer: direction for layer, direction in vector.directions.items() if layer}
    if not kept:
        raise ValueError(f"vector {vector.name!r} has layer 0 only, which llama.cpp never steers")
    if 0 in vector.layers:
        warnings.warn(
            f"layer 0 of {vector.name!r} is left out of the control vector: llama.cpp refuses it",
            stacklevel=3,
        )
    facts = about_text(vector)
    with written_whole(path) as unfinished:
        writer = gguf.GGUFWriter(unfinished, ARCHITECTURE)
        try:
            writer.add_string(
                f"{ARCHITECTURE}.model_hint", str(vector.provenance.get("model_type", "unknown"))
            )
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(kept))
            writer.add_string(OWN, facts)
            for layer, direction in kept.items():
                writer.add_tensor(f"direction.{layer}", direction.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
