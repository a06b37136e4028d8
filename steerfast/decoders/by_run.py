"""A survey by one short forward of the model: its layers' wirings read off, and proven on what they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.embedded import enters_alone
from steerfast.decoders.find import Decoder
from steerfast.decoders.norms import NormForm, form_of
from steerfast.decoders.prove import prove, prove_reader
from steerfast.decoders.read import NotWired, untried
from steerfast.decoders.replay import read_off
from steerfast.decoders.survey import Found, Survey
from steerfast.decoders.watch import PROMPT, LayerRun, Watched, undisturbed, watch
from steerfast.errors import SteerfastError


def survey_by_run(decoder: Decoder, ops: Any) -> Survey:
    """Run a few tokens through the model's own layers, and hold our reading of them against what they did.

    Raises SteerfastError for a model whose layers give no stream that could be steered, or that cannot be run.
    """
    with undisturbed(decoder.module):
        try:
            prompt, step = watch(decoder)
        except Exception as error:
            raise SteerfastError(
                f"cannot look at how {type(decoder.module).__name__} works: a few tokens through it raise "
                f"{type(error).__name__}: {error}"
            ) from error
        _check_runs(decoder, prompt)
        _check_causal(decoder, prompt)
        forms = _forms(prompt)
        layers = tuple(
            _found(number, prompt, step, forms, ops) for number in range(len(prompt.runs))
        )
        norm, form = _reader(decoder, prompt, forms, ops)
        first = prompt.runs[0].entered
        embedded = prompt.embedded is not None and prompt.embedded.is_still(first)
        embedded = embedded and enters_alone(decoder, prompt)
    return Survey(layers, norm, form, forms, embedded)


def _reader(
    decoder: Decoder, watched: Watched, forms: Mapping[type, NormForm], ops: Any
) -> tuple[str | None, NormForm | None]:
    """The part that makes the decoder's result of the last layer's stream, and its form if it is proven."""
    last, result = watched.runs[-1].left, watched.result
    for name, took in watched.readers.items():
        part = decoder.module._modules[name]
        if part is None or not took.is_still(last):
            continue
        with torch.no_grad():
            made = part.forward(took.value)
        if result is not None and isinstance(made, Tensor) and torch.equal(made, result.value):
            proven = prove_reader(part, took, forms, ops)
            return name, forms[type(part)] if proven else None
    return None, None


def _check_runs(decoder: Decoder, watched: Watched) -> None:
    kind, layers = type(decoder.module).__name__, decoder.layers
    ran = [run.layer for run in watched.runs]
    if len(ran) != len(layers) or any(a is not b for a, b in zip(ran, layers, strict=True)):
        raise SteerfastError(
            f"cannot steer {kind}: of its {len(layers)} layers {len(ran)} ran, or in another order; a site is a place that a "
            "token passes once"
        )
    width = decoder.hidden_size
    for number, run in enumerate(watched.runs):
        for seen in (run.entered, run.left):
            shape = None if seen is None else tuple(seen.tensor.shape)
            if shape != (*watched.tokens, width):
                what = "no stream" if shape is None else f"a stream of shape {list(shape)}"
                raise SteerfastError(
                    f"cannot steer {kind}: of {list(watched.tokens)} tokens layer {number} takes or gives {what}, and a vector is "
                    f"for one of [B, T, {width}]"
                )


def _check_causal(decoder: Decoder, watched: Watched) -> None:
    """What a token does to those in front of it: nothing, or there is no steering of positions."""
    left = watched.runs[-1].left
    assert left is not None
    same, other = (left.value[row, : PROMPT - 1] for row in (1, 2))
    rounding = 16 * torch.finfo(same.dtype).eps  # a row may be computed otherwise beside others
    if float((same - other).abs().max()) > rounding * float(same.abs().max()):
        raise SteerfastError(
            f"cannot steer {type(decoder.module).__name__}: it is not causal, a token changes the stream of those in front of it; "
            "steered are decoders"
        )


def _forms(watched: Watched) -> dict[type, NormForm]:
    """Of every class of part that may be a norm."""
    parts: dict[type, nn.Module] = {}
    for run in watched.runs:
        for call in run.calls:
            if call.alone:
                parts.setdefault(type(call.module), call.module)
    found = {kind: form_of(part) for kind, part in parts.items()}
    return {kind: form for kind, form in found.items() if form is not None}


def _found(
    number: int,
    prompt: Watched,
    step: Watched | Exception | None,
    forms: Mapping[type, NormForm],
    ops: Any,
) -> Found:
    run: LayerRun = prompt.runs[number]
    in_tuple = isinstance(run.output, (tuple, list))
    more = in_tuple and len(run.output) > 1
    try:
        if isinstance(step, Exception):
            raise NotWired(f"a single token behind its cache raises {type(step).__name__}")
        wiring = read_off(run)
        prove(run, wiring, forms, ops)
        if step is not None:
            again = step.runs[number]
            if read_off(again) != wiring:
                raise NotWired("it works otherwise for a single token behind a cache")
            prove(again, wiring, forms, ops)
        wiring = replace(wiring, untried=untried(wiring, [run] if step is None else [run, again]))
    except NotWired as why:
        return Found(None, str(why), in_tuple, more)
    return Found(wiring, "", in_tuple, more)
