"""Libraries with an environment of their own: repeng (NumPy 1) and the two under the AGPL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peers.peer import Call, Peer, Task, logits_of, removing


@contextmanager
def repeng(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from repeng import ControlModel, ControlVector

    layers = sorted(task.vectors)
    controlled = ControlModel(model, layers)
    directions = {layer: task.vectors[layer].numpy() for layer in layers}
    control = ControlVector(model_type="llama", directions=directions)
    controlled.set_control(control, task.coefficient, normalize=task.operation == "preserve")
    try:
        yield logits_of(controlled)
    finally:
        controlled.unwrap()


@contextmanager
def interlens(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from interlens.interp.steering import SteeringSpec

    mode = "ablate" if task.operation == "ablate" else "add"
    handles = [
        handle
        for layer, vector in task.like(model).items()
        for handle in SteeringSpec(vector, (layer,), task.coefficient, mode).register(model)
    ]
    with removing(handles):
        yield logits_of(model)


@contextmanager
def saklas(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from saklas.core.hooks import install_persistent_offset_hooks

    weight = next(model.parameters())
    buffers, handles = install_persistent_offset_hooks(
        model.model.layers, model.config.hidden_size, weight.device, weight.dtype
    )
    for layer, vector in task.like(model).items():
        buffers[layer].copy_(task.coefficient * vector)
    with removing(handles):
        yield logits_of(model)


PEERS = (
    Peer(
        "repeng",
        "repeng",
        "apart",
        "MIT",
        repeng,
        frozenset({"add", "preserve"}),
        False,
        "block output",
        "wrapped layers that take a norm and build a padding mask at each call; a batch without position_ids fails; "
        "rescales padding too; takes left padding for granted; NumPy 1 only",
    ),
    Peer(
        "interlens",
        "interlens",
        "apart",
        "AGPL-3.0",
        interlens,
        frozenset({"add", "ablate"}),
        False,
        "block output",
        "hook, coefficient * vector (or v / |v|) at each call; pins transformers < 5",
    ),
    Peer(
        "saklas",
        "saklas",
        "apart",
        "AGPL-3.0",
        saklas,
        frozenset({"add"}),
        False,
        "block output",
        "persistent in-place add on every layer, steered or not, made for torch.compile; its other operations live in "
        "a session that generates by itself, one stream at a time",
    ),
)
