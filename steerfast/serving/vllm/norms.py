"""vLLM's Llama, steered in its norms: the one place where branch and residual meet.

Between two layers the stream is a pair whose sum exists nowhere; a fused add and RMSNorm forms it:

    post_attention_layernorm of layer l    resid_mid of l
    input_layernorm of layer l > 0         resid_post of l - 1
    input_layernorm of layer 0             resid_pre of 0 (the embeddings themselves)
    norm of the model                      resid_post of the last layer

So nothing but the norms is replaced, each by itself under another class. On a pipeline's boundary the next stage's
first norm steers what the stage before has put out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steerfast import ops  # noqa: F401  registers torch.ops.steerfast
from steerfast.serving.settings import Mode
from steerfast.sites import site_index
from steerfast.table import Table


@functools.cache
def steered_class(mode: Mode) -> type:
    """The RMSNorm that steers, in one of the two modes."""
    from vllm.model_executor.layers.layernorm import RMSNorm

    class SteeredRMSNorm(RMSNorm):  # type: ignore[misc]
        """As RMSNorm, of the steered stream. What it steers by are buffers at fixed addresses, written between steps."""

        def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
            rows = x.shape[0]
            steering = (
                self.row_slot[:rows],
                self.row_gain[:rows],
                self.records,
                self.reads,
                self.bank,
            )
            if residual is None:
                # The caller's residual is x itself: what is done in place is done to the stream.
                torch.ops.steerfast.steer_(x, *steering)
                return super().forward(x)
            if mode == "exact":
                torch.ops.steerfast.steer_halves_(x, residual, *steering)
                return super().forward(x, residual)
            torch.ops.steerfast.steer_add_rms_norm_(
                x, residual, self.weight, self.variance_epsilon, True, *steering
            )
            return x, residual

    return SteeredRMSNorm


def steered_norms(model: Any) -> Iterator[tuple[Any, int]]:
    """(norm, the site that it steers) for every norm of a vLLM LlamaModel on this pipeline stage."""
    for index in range(model.start_layer, model.end_layer):
        layer = model.layers[index]
        before = site_index(
            "resid_pre", index
        )  # of layer 0; of others, resid_post of the one before
        yield layer.input_layernorm, before
        yield layer.post_attention_layernorm, site_index("resid_mid", index)
    last = site_index("resid_post", len(model.layers) - 1)
    if hasattr(model.norm, "variance_epsilon"):  # a stage that is not the last has none
        yield model.norm, last


def steer_norms(model: Any, mode: Mode, table: Table, row_slot: Tensor, row_gain: Tensor) -> None:
    """Let every norm of the model steer by the table's records of its site and by the rows' slots and gains."""
    kind = steered_class(mode)
    for norm, site in steered_norms(model):
        norm.__class__ = kind
        for name, tensor in (
            ("row_slot", row_slot),
            ("row_gain", row_gain),
            ("records", table.site_records[site]),
            ("reads", table.reads),
            ("bank", table.bank),
        ):
            norm.register_buffer(name, tensor, persistent=False)


def find_llama(model: Any) -> Any:
    """The LlamaModel inside; SteerfastError for layers or norms that are not the ones known here."""
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaModel

    from steerfast.errors import SteerfastError

    found = [module for module in model.modules() if type(module) is LlamaModel]
    if len(found) != 1:
        raise SteerfastError(
            f"the model is a {type(model).__name__} with {len(found)} plain LlamaModels inside; steered is exactly one"
        )
    llama = found[0]
    for index in range(llama.start_layer, llama.end_layer):
        if type(llama.layers[index]) is not LlamaDecoderLayer:
            raise SteerfastError(
                f"layer {index} is a {type(llama.layers[index]).__name__}; steered is LlamaDecoderLayer, whose subclasses may "
                "do anything"
            )
    for norm, _ in steered_norms(llama):
        if type(norm) is not RMSNorm or norm.variance_size_override is not None:
            raise SteerfastError(f"a norm is a {type(norm).__name__}; steered is a plain RMSNorm")
        if not norm.has_weight:
            raise SteerfastError("a norm has no weight, which the steered one needs")
    return llama
