"""Libraries in which the user writes the edit of a layer's output as code: what they add is where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from peers.baselines import Edit, edits
from peers.peer import Call, Peer, Task
from steerfast.experiments.decode_speed import twin


@contextmanager
def pyvene(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    import pyvene as pv

    def intervention(edit: Edit) -> Callable[[Tensor, Any], Tensor]:
        return lambda base, source: edit(base)

    interventions = [
        {"component": f"model.layers[{layer}].output", "intervention": intervention(edit)}
        for layer, edit in edits(model, task).items()
    ]
    intervenable = pv.IntervenableModel(interventions, model=model)

    def call(input_ids: Tensor, use_cache: bool | None = None, **inputs: Any) -> Tensor:
        _, outputs = intervenable({"input_ids": input_ids, **inputs}, use_cache=use_cache)
        return outputs.logits

    yield call


@contextmanager
def nnsight(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from nnsight.modeling.transformers import TransformersModel

    # It rebinds every module's forward, for good: a twin has the same weights and modules of its own.
    traced = TransformersModel(twin(model), tokenizer=tokenizer, task="text-generation")
    steered = [(traced.model.layers[layer], edit) for layer, edit in edits(model, task).items()]

    def call(input_ids: Tensor, **inputs: Any) -> Tensor:
        with traced.trace(input_ids, **inputs):
            for layer, edit in steered:
                layer.output = edit(layer.output)
            logits = traced.lm_head.output.save()
        return logits  # noqa: RET504 - bound inside the trace, real only behind it

    yield call


@contextmanager
def transformer_lens(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    def hook(edit: Edit) -> Callable[..., Tensor]:
        return lambda output, hook: edit(output)

    bridge = build_bridge_from_module(
        twin(model),  # whose parts the bridge replaces
        type(model).__name__,
        hf_config=model.config,
        dtype=model.dtype,
        device=model.device,
    )
    hooks = [(f"blocks.{layer}.hook_out", hook(edit)) for layer, edit in edits(model, task).items()]

    def call(input_ids: Tensor, **inputs: Any) -> Tensor:
        given = {name: value for name, value in inputs.items() if value is not None}
        return bridge(input_ids, **given)

    with bridge.hooks(fwd_hooks=hooks):
        yield call


PEERS = (
    Peer(
        "pyvene",
        "pyvene",
        "main",
        "Apache-2.0",
        pyvene,
        frozenset({"add", "preserve", "ablate"}),
        True,
        "block output",
        "hooks registered and removed at each forward around the user's lambda; removes every hook of the model, "
        "others' too",
    ),
    Peer(
        "nnsight",
        "nnsight",
        "main",
        "MIT",
        nnsight,
        frozenset({"add", "preserve", "ablate"}),
        True,
        "block output",
        "the block of a `with` runs in a thread of its own between the layers, at each forward",
    ),
    Peer(
        "transformer-lens",
        "transformer-lens",
        "main",
        "MIT",
        transformer_lens,
        frozenset({"add", "preserve", "ablate"}),
        True,
        "block output",
        "hook points of a TransformerBridge, which runs its own parts in place of the model's: equal to about 3e-7",
    ),
)
