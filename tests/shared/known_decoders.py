"""Writes ``steerfast/decoders/known.json``: surveys of tiny random models of every class, ``make known-decoders``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tiny_decoders import decoder_names, tiny_decoder

import steerfast
from steerfast.decoders.by_class import as_known, class_name
from steerfast.decoders.by_run import survey_by_run
from steerfast.decoders.find import find_decoder
from steerfast.ops import reference

FILE = Path(steerfast.__file__).parent / "decoders" / "known.json"


def surveys() -> dict[str, Any]:
    """{class of a decoder: what is known of it}, of all that can be made and run here."""
    found: dict[str, Any] = {}
    for name in decoder_names():
        try:
            decoder = find_decoder(tiny_decoder(name))
            found[class_name(type(decoder.module))] = as_known(
                decoder, survey_by_run(decoder, reference)
            )
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:120]}")
    return dict(sorted(found.items()))


if __name__ == "__main__":
    known = {"transformers": transformers.__version__, "decoders": surveys()}
    FILE.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{len(known['decoders'])} classes written to {FILE.name}")
