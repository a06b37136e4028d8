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
from steerfast.plans.sites import site_index
from steerfast.serving.settings import Mode
from steerfast.table.table import Table


class StepRows:
    """The slots and gains of the rows of a step, cut to their number: once a step, not once a norm."""

    def __init__(self, slot: Tensor, gain: Tensor) -> None:
        self.slot, self.gain = slot, gain
        self._count = -1
        self._cut = (slot, gain)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Views of the first ``count`` rows."""
        if torch.compiler.is_compiling():  # a graph cuts for itself, and keeps no view
            return self.slot[:count], self.gain[:count]
        if count != self._count:
            self._count, self._cut = count, (self.slot[:count], self.gain[:count])
        return self._cut


@functools.cache
def steered_class(mode: Mode) -> type:
    """The RMSNorm that steers, in one of the two modes."""
    from vllm.model_executor.layers.layernorm import RMSNorm

    steer_, halves_ = torch.ops.steerfast.steer_.default, torch.ops.steerfast.steer_halves_.default
    fused_ = torch.ops.steerfast.steer_add_rms_norm_.default

    class SteeredRMSNorm(RMSNorm):  # type: ignore[misc]
        """As RMSNorm, of the steered stream. What it steers by has fixed addresses and is written between steps.

        ``steered_by``: (StepRows, records of its site, reads, bank).
        """

        def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
            rows, records, reads, bank = self.steered_by
            slot, gain = rows.first(x.shape[0])
            if residual is None:
                # The caller's residual is x itself: what is done in place is done to the stream.
                steer_(x, slot, gain, records, reads, bank)
                return self._forward_method(x)
            if mode == "exact":
                halves_(x, residual, slot, gain, records, reads, bank)
                return self._forward_method(x, residual)
            fused_(
                x,
                residual,
                self.weight,
                self.variance_epsilon,
                True,
                slot,
                gain,
                records,
                reads,
                bank,
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
    kind, rows = steered_class(mode), StepRows(row_slot, row_gain)
    for norm, site in steered_norms(model):
        norm.__class__ = kind
        norm.steered_by = (rows, table.site_records[site], table.reads, table.bank)
    # As buffers, so that an engine that puts its model to sleep keeps what it holds.
    owner = model.layers[model.start_layer]
    kept = {"records": table.records, "reads": table.reads, "bank": table.bank}
    for name, tensor in {**kept, "row_slot": row_slot, "row_gain": row_gain}.items():
        owner.register_buffer(f"steerfast_{name}", tensor, persistent=False)


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
