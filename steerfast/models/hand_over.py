"""When a kernel may compute the norm that the next module would: nobody can look or step in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from steerfast.decoders.norms import NormForm
from steerfast.models.rebind import stands
from steerfast.ops.forms import NormOrder
from steerfast.ops.records import Steering


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


class Ready(NamedTuple):
    """A norm that may be computed by a kernel, and what the ops take of it."""

    norm: Any
    weight: Tensor
    eps: float
    order: NormOrder

    def narrowed(self, normed: Tensor, stream: Tensor) -> Tensor:
        """As the module returns it: one that rounds once does so to its input's dtype, whatever that of its weight."""
        return normed.to(stream.dtype) if self.order == "fp32" else normed


def steered(
    ops: Any, stream: Tensor, branch: Tensor | None, site: Steering, norm: Ready | None
) -> tuple[Tensor, Tensor | None]:
    """(the stream, steered; its norm, or None), in one launch. branch: what is added to the stream first, if anything is.
    norm: the one that follows, where a kernel may compute it."""
    if norm is None:
        if branch is None:
            return ops.steer(stream, site), None
        return ops.steer_add(branch, stream, site), None
    if branch is None:
        stream, normed = ops.steer_rms_norm(stream, norm.weight, norm.eps, site, norm.order)
    else:
        stream, normed = ops.steer_add_rms_norm(
            branch, stream, norm.weight, norm.eps, site, norm.order
        )
    return stream, norm.narrowed(normed, stream)


class KernelNorm:
    """A norm that a kernel may compute: ``name`` of ``owner``, of a class whose form is known."""

    def __init__(
        self,
        owner: nn.Module,
        name: str,
        form: NormForm,
        *,
        owner_forward: Any = None,
        norm_forward: Any = None,
        apart: bool = True,
    ) -> None:
        self.owner, self.name, self.form = owner, name, form
        self.norm_class = type(getattr(owner, name))
        # What must stand in ``forward`` of both. A layer must be ours; the model calls its final norm as a
        # module, so that one has a forward of ours where attach found none. apart: the owner is another layer, and
        # hooks on it would see the stream first. ...: whatever stands there.
        self.owner_forward, self.norm_forward, self.apart = owner_forward, norm_forward, apart

    @classmethod
    def within(cls, layer: Any, name: str, forms: Mapping[type, NormForm]) -> KernelNorm | None:
        """Of a layer's norm between its own steps, which nobody else calls; None if its form is not known."""
        form = forms.get(type(getattr(layer, name)))
        return None if form is None else cls(layer, name, form, owner_forward=..., apart=False)

    def ready(self, stream: Tensor) -> Ready | None:
        """The norm, if it may be computed here and handed over; else None.

        It is still of the class that attach knew, nobody watches or replaces it, and its weight is a plain tensor on the
        stream's device (offloading libraries keep it elsewhere until the norm is called).
        """
        owner, norm = self.owner, self.owner._modules[self.name]
        if self.owner_forward is not ... and not stands(
            self.owner_forward, owner.__dict__.get("forward")
        ):
            return None
        if (
            norm is None
            or type(norm) is not self.norm_class
            or not stands(self.norm_forward, norm.__dict__.get("forward"))
            or not unobserved(norm)
            or (self.apart and not unobserved(owner))
        ):
            return None
        form = self.form
        taken: Tensor | None = None
        if form.weighted:
            weight = norm._parameters.get("weight")
            if (
                type(weight) is not nn.Parameter
                or weight.device != stream.device
                or (weight.dtype is not stream.dtype and weight.dtype is not torch.float32)
            ):
                return None
            taken = weight
        if taken is None or form.offset:
            # An offset is added each time: weights that are written to through ``data`` leave no trace.
            taken = form.weight_of(norm, stream)
        return Ready(norm, taken, getattr(norm, form.eps), form.order)
