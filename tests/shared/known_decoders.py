"""Writes ``steerfast/decoders/known.json``: surveys of tiny random models of every class, ``make known-decoders``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_decoder_sizes import FLOAT32_ONLY, VARIANTS
from tiny_decoders import decoder_names, tiny_decoder
from transformers.utils import logging

import steerfast
from steerfast.decoders.by_class import as_known, class_name
from steerfast.decoders.by_run import survey_by_run
from steerfast.decoders.find import find_decoder
from steerfast.errors import SteerfastError
from steerfast.ops import reference

FILE = Path(steerfast.__file__).parent / "decoders" / "known.json"
Entry = dict[str, Any]


def surveys(names: list[str] | None = None) -> dict[str, Entry]:
    """{class of a decoder: what is known of it}, of all that can be made and run here: what holds in every precision and with
    every switch that was tried."""
    found: dict[str, Entry] = {}
    for name in decoder_names() if names is None else names:
        for overrides in [{}, *(more for kind, more in VARIANTS if kind == name)]:
            for dtype in (torch.float32, torch.bfloat16):
                if dtype is torch.bfloat16 and name in FLOAT32_ONLY:
                    continue
                decoder = find_decoder_of(name, dtype, overrides)
                if decoder is None:
                    continue
                try:
                    entry = as_known(decoder, survey_by_run(decoder, reference))
                except SteerfastError as error:
                    print(f"{name}: {str(error)[:120]}")
                    continue
                kind = class_name(type(decoder.module))
                found[kind] = entry if kind not in found else both(found[kind], entry)
    return dict(sorted(found.items()))


def find_decoder_of(name: str, dtype: torch.dtype, overrides: dict[str, Any]) -> Any:
    try:
        return find_decoder(tiny_decoder(name, dtype=dtype, **overrides))
    except SteerfastError as error:
        print(f"{name}: {str(error)[:120]}")
        return None


def both(one: Entry, other: Entry) -> Entry:
    """What two surveys of a class have in common: of a layer all wirings, None among them where it had none."""
    layers = {kind: list(wirings) for kind, wirings in one["layers"].items()}
    for kind, wirings in other["layers"].items():
        mine = layers.setdefault(kind, [])
        mine += [wiring for wiring in wirings if wiring not in mine]
    forms = {
        kind: form
        for kind, form in {**one["forms"], **other["forms"]}.items()
        if one["forms"].get(kind, form) == other["forms"].get(kind, form)
    }
    return {
        "layers": layers,
        "forms": forms,
        "norm": one["norm"] if one["norm"] == other["norm"] else None,
        "in_tuple": one["in_tuple"] or other["in_tuple"],
        "more": one["more"] or other["more"],
        "embedded": one["embedded"] and other["embedded"],
    }


def written(known: dict[str, Entry]) -> str:
    """A line for each class."""
    lines = [
        f"{json.dumps(kind)}:{json.dumps(e, separators=(',', ':'))}" for kind, e in known.items()
    ]
    version = json.dumps(transformers.__version__)
    return f'{{"transformers":{version},"decoders":{{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    logging.set_verbosity_error()
    known = surveys()
    FILE.write_text(written(known), encoding="utf-8")
    print(f"{len(known)} classes written to {FILE.name}")
