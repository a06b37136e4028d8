"""``look``: the survey of a decoder, by a run where that can be, else by its class."""

from __future__ import annotations

from typing import Any

import torch

from steerfast.decoders.by_class import survey_by_class
from steerfast.decoders.by_run import survey_by_run
from steerfast.decoders.find import META, Decoder
from steerfast.decoders.survey import Found, Survey


def look(decoder: Decoder, ops: Any, *, prove: bool = True) -> Survey:
    """How each layer of a decoder is to be patched.

    ops: of the backend that will run. prove: run a few tokens, and hold what is read off against them to the bit; False, and
    a model with parts on meta, is surveyed by class, and where that is not known steered behind its layers.
    Raises SteerfastError for a model that fails on a few tokens, or has no layers with a stream between them.
    """
    offloaded = any(part.device == META for part in decoder.module.parameters())
    if prove and not offloaded:
        with torch.device("cpu"):  # what the caller would make tensors on is not where the model is
            return survey_by_run(decoder, ops)
    found = survey_by_class(decoder)
    if found is not None:
        return found
    why = "was not run" if not offloaded else "has parts elsewhere, so that it was not run"
    reason = f"the model {why}, and {type(decoder.module).__name__} is not among the classes that are known"
    return Survey(tuple(Found(None, reason) for _ in decoder.layers), None, by="class")
