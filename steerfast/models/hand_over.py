"""When a kernel may compute the norm that the next module would: nobody can look or step in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from steerfast.models.rebind import stands


def _only_reads(hook: Any) -> bool:
    """transformers' own recorder of hidden states, which stays installed after its first use."""
    return getattr(hook, "__name__", "") == "output_capturing_hook"


def unobserved(module: nn.Module) -> bool:
    """No hook on the module sees or changes what flows through it."""
    if not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return True
    return not (
        module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    ) and all(_only_reads(hook) for hook in module._forward_hooks.values())


def watched_everywhere() -> bool:
    """A hook on all modules (a profiler's, a tracer's) wants to see every norm called."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def at_hand(norm: nn.Module, kind: type, stream: Tensor, ours: Any = None) -> bool:
    """The kernel may stand in for this norm: it is still of the class that attach knew, nobody watches or
    replaces it, and its weight is a plain tensor on the stream's device (offloading libraries keep it
    elsewhere until the norm is called)."""
    weight = norm._parameters.get("weight")
    return (
        type(norm) is kind
        and stands(ours, norm.__dict__.get("forward"))
        and type(weight) is nn.Parameter
        and weight.device == stream.device
        and (weight.dtype is stream.dtype or weight.dtype is torch.float32)
        and unobserved(norm)
    )


class NextNorm:
    """The norm that will read a stream: ``name`` of ``owner``, which is the next layer or the model."""

    def __init__(self, owner: nn.Module, name: str, owner_forward: Any, norm_forward: Any) -> None:
        self.owner, self.name = owner, name
        self.norm_class = type(getattr(owner, name))
        # What must stand in ``forward`` of both. A layer must be ours; the model calls its final norm as a
        # module, so that one has a forward of ours where attach found none.
        self.owner_forward, self.norm_forward = owner_forward, norm_forward

    def ready(self, stream: Tensor) -> Any:
        """The norm, if it may be computed here and handed over; else None."""
        owner, norm = self.owner, self.owner._modules[self.name]
        if not stands(self.owner_forward, owner.__dict__.get("forward")):
            return None
        if self.name == "input_layernorm" and not unobserved(owner):
            return None
        assert norm is not None
        return norm if at_hand(norm, self.norm_class, stream, self.norm_forward) else None
