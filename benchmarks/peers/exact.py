"""What the right answer is: the same model in float64, steered by plain hooks, without a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peers.peer import Task


def in_float64(model: Any) -> Any:
    """A copy whose every product and norm is float64; the rotary tables stay those of the model."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if hasattr(
            module, "variance_epsilon"
        ):  # RMSNorm of transformers works in float32 whatever comes
            module.forward = _norm(module.weight, module.variance_epsilon)
    return exact


def _norm(weight: Tensor, epsilon: float) -> Callable[[Tensor], Tensor]:
    return lambda x: weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))


@torch.inference_mode()
def oracle(model64: Any, task: Task | None, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Logits of ``task`` (None: unsteered) by the formulas of ``Task``, in float64 and without a cache."""
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    handles = []
    for layer, vector in ({} if task is None else task.vectors).items():
        assert task is not None
        hook = _hook(task, vector.to(input_ids.device).double(), positions)
        handles.append(model64.model.layers[layer].register_forward_hook(hook))
    try:
        logits: Tensor = model64(input_ids=input_ids, **inputs).logits
        return logits
    finally:
        for handle in handles:
            handle.remove()


def _hook(task: Task, vector: Tensor, positions: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: Any, h: Tensor) -> Tensor:
        y = h + task.coefficient * vector
        if task.operation == "add_from":
            return torch.where((positions >= task.start)[..., None], y, h)
        if task.operation == "preserve":
            return y * h.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
        if task.operation == "ablate":
            return h - (h * vector).sum(-1, keepdim=True) * vector / vector.square().sum()
        return y

    return hook
