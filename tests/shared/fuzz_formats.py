"""Changed files of other libraries, for the fuzz of readers: the bytes, and what lies inside an archive or a header."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_readers import LAYERS, D, Reader, changed_bytes, changed_tree
from safetensors.torch import save_file

from steerfast import SteeringVector, load, save

F = 11  # features of an SAE
Change = Callable[[random.Random], bytes]


def every(folder: Path) -> list[Reader]:
    """A reader of each format; an SAE by its first feature, as a clamp, which reads all of its tensors."""
    vector = SteeringVector(
        "v", {at: torch.randn(D) for at in range(1, LAYERS)}, {1: 2.0}, {"model": "m"}
    )
    sae = {
        "w_enc": torch.randn(D, F), "w_dec": torch.randn(F, D), "b_enc": torch.randn(F), "b_dec": torch.randn(D),
        "threshold": torch.rand(F),
    }  # fmt: skip

    def made(name: str, write: Callable[[Path], object]) -> bytes:
        write(folder / name)
        return (folder / name).read_bytes()

    gguf, npz, svec = (
        made(f"v.{kind}", lambda path: save(vector, path)) for kind in ("gguf", "npz", "svec")
    )
    pt = made("v.pt", lambda path: save(replace(vector, stream_norms={}), path))
    rows = made("rows.pt", lambda path: torch.save(torch.randn(LAYERS, D), path))
    npy = made("v.npy", lambda path: np.save(path, np.ones((LAYERS, D), np.float32)))
    tensors = made("layer_1.safetensors", lambda path: save_file(sae, path))
    upper = {name.replace("w_", "W_"): one for name, one in sae.items()}
    arrays = made("layer_1.npz", lambda path: np.savez(path, **upper))
    cap = {
        "vectors": {"a": {"vector": torch.ones(D), "layer": 1}},
        "experiments": [{"id": "x", "interventions": [{"vector": "a", "cap": 1.0}]}],
    }
    capping = made("capping_config.pt", lambda path: torch.save(cap, path))
    lens = {
        "activations": {"data": "AACAPwAAgD8=", "dtype": "float32", "shape": [1, 2]}, "layer_indices": [1], "scale": 1.0,
        "norm_match": False, "position_indices": None,
    }  # fmt: skip
    easy = {
        "version": 1,
        "kind": "direction",
        "tensors": {"layer.1": {"shape": [2], "data": "AACAPwAAgD8="}},
        "extra": {},
    }

    def reader(name: str, file: str, change: Change, part: str = "", **more: Any) -> Reader:
        def read(data: bytes) -> object:
            (folder / file).write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return load(f"{folder / file}{part}", **more)

        return Reader(name, read, change)

    return [
        reader("control vector", "f.gguf", lambda draw: _numbers(draw, gguf)),
        reader("npz", "f.npz", lambda draw: _archive(draw, npz)),
        reader("npy", "f.npy", lambda draw: changed_bytes(draw, npy)),
        reader("pt by layer", "f.pt", lambda draw: _archive(draw, pt)),
        reader("pt of rows", "g.pt", lambda draw: _archive(draw, rows)),
        reader("capping", "c.pt", lambda draw: _archive(draw, capping), "#x"),
        reader("svec", "f.svec", lambda draw: _text(draw, svec)),
        reader(
            "payload",
            "f.json",
            lambda draw: _text(draw, json.dumps(draw.choice([lens, easy])).encode()),
        ),
        reader(
            "sae safetensors",
            "layer_1_f.safetensors",
            lambda draw: _header(draw, tensors),
            "#0",
            target=1.0,
        ),
        reader("sae npz", "layer_1_f.npz", lambda draw: _archive(draw, arrays), "#0", target=1.0),
    ]


def _text(draw: random.Random, valid: bytes) -> bytes:
    if draw.random() < 0.3:
        return changed_bytes(draw, valid)
    return changed_tree(draw, json.loads(valid)).encode("utf-8", "surrogatepass")


def _numbers(draw: random.Random, valid: bytes) -> bytes:
    """One of its counts, lengths, sizes or offsets another, or some of its bytes."""
    if draw.random() < 0.4:
        return changed_bytes(draw, valid)
    data = bytearray(valid)
    at = draw.randrange(min(len(data) - 8, 900))
    struct.pack_into(
        "<Q", data, at, draw.choice([0, 1, 7, 2**16, 2**31, 2**40, 2**60, 2**63, 2**64 - 1])
    )
    return bytes(data)


def _archive(draw: random.Random, valid: bytes) -> bytes:
    """The archive's bytes changed, or those of a file in it, packed anew so that its checksum fits."""
    if draw.random() < 0.3:
        return changed_bytes(draw, valid)
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = draw.randrange(len(entries))
    name, data = entries[at]
    kind = draw.randrange(8)
    if kind == 0:
        entries.append(draw.choice(entries))
    elif kind == 1:
        del entries[at]
    elif kind == 2:
        entries[at] = (draw.choice(["x", "a.npy", "../x", "direction.1.npy", "data.pkl"]), data)
    else:
        entries[at] = (
            name,
            _numbers(draw, data) if len(data) > 16 and kind == 3 else changed_bytes(draw, data),
        )
    file = io.BytesIO()
    compression = draw.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def _header(draw: random.Random, valid: bytes) -> bytes:
    if draw.random() < 0.3:
        return changed_bytes(draw, valid)
    length = struct.unpack("<Q", valid[:8])[0]
    text = changed_tree(draw, json.loads(valid[8 : 8 + length])).encode("utf-8", "surrogatepass")
    says = draw.choice([len(text)] * 8 + [0, len(text) + 1, 2**40, 2**63])
    return struct.pack("<Q", says) + text + valid[8 + length :]
