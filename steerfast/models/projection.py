"""From a decoder's result to logits as the model itself makes them: the output embedding, and what some put behind it
(Gemma 2 caps logits, Granite divides them, Cohere multiplies them)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.find import Decoder, find_decoder
from steerfast.errors import SteerfastError


class _Result:
    """Of a decoder that was stood in for: its stream, and None for whatever else a model hands on (``router_logits``)."""

    def __init__(self, stream: Tensor) -> None:
        self.last_hidden_state = stream

    def __getitem__(self, at: Any) -> Any:
        return (
            self.last_hidden_state if at == "last_hidden_state" else (self.last_hidden_state,)[at]
        )

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands where the decoder was, and gives what it is told to."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.config, self.dtype = decoder.config, decoder.dtype
        self.stream: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _Result:
        assert self.stream is not None
        return _Result(self.stream)


class Projection:
    """``projection(stream)``: logits [..., V] of places whose decoder's result is [..., D]. out_features: V.

    The model's own forward, on copies of the modules down to its decoder that share all else with it. Nothing of the model
    is changed. Raises SteerfastError for a model that makes no logits.
    """

    def __init__(self, model: Any) -> None:
        decoder = find_decoder(model)
        self.out_features = int(decoder.config.vocab_size)
        if not decoder.path:
            raise _headless(model)
        self._given = _Given(decoder.module)
        self._shell = _without_decoder(model, decoder, self._given)
        self._kind = type(model).__name__

    def __call__(self, stream: Tensor) -> Tensor:
        flat = stream.flatten(0, -2)[None]
        ids = torch.zeros(flat.shape[:2], dtype=torch.int64, device=stream.device)
        self._given.stream = flat
        try:
            logits = getattr(self._shell(input_ids=ids, use_cache=False), "logits", None)
        finally:
            self._given.stream = None
        if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
            raise _headless(self._kind)
        return logits.reshape(*stream.shape[:-1], logits.shape[-1])


def _headless(model: Any) -> SteerfastError:
    kind = model if isinstance(model, str) else type(model).__name__
    return SteerfastError(
        f"{kind} makes no logits of its stream; what is asked for needs a causal language model"
    )


def _without_decoder(model: nn.Module, decoder: Decoder, given: nn.Module) -> nn.Module:
    *above, last = decoder.path.rstrip(".").split(".")
    shell = inner = _copy(model)
    for name in above:
        inner._modules[name] = inner = _copy(inner.get_submodule(name))
    inner._modules[last] = given
    return shell


def _copy(module: nn.Module) -> nn.Module:
    """Without what is bound to the module that it is a copy of: a forward of accelerate's, compiled code."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    copied.__dict__.pop("forward", None)
    copied.__dict__.pop("_compiled_call_impl", None)
    return copied
