"""Llama, patched: residual add, steering and RMSNorm as one kernel, twice a layer and nothing else.

Each class below owns the ``forward`` of one module instance. The second kernel of a layer computes the
norm that the next layer starts with and hands it over; where anybody could look in between (a hook, a
foreign ``forward``, a norm whose weight lives elsewhere), the layer runs un-fused and just as right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from steerfast.lowering import site_index
from steerfast.models.forward_pass import ForwardPass
from steerfast.reference import Steering


def _only_reads(hook: Any) -> bool:
    """transformers' own recorder of hidden states, which stays installed after its first use."""
    return getattr(hook, "__name__", "") == "output_capturing_hook"


def _unobserved(module: nn.Module) -> bool:
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


def _global_hooks() -> bool:
    """A hook on all modules (a profiler's, a tracer's) wants to see every norm called."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def _at_hand(norm: nn.Module, stream: Tensor, ours: Any = None) -> bool:
    """The kernel may stand in for this norm: nobody watches or replaces it, and its weight is a plain
    tensor on the stream's device (offloading libraries keep it elsewhere until the norm is called)."""
    weight = norm._parameters.get("weight")
    return (
        norm.__dict__.get("forward") is ours
        and type(weight) is nn.Parameter
        and weight.device == stream.device
        and (weight.dtype is stream.dtype or weight.dtype is torch.float32)
        and _unobserved(norm)
    )


class SteeredLayer:
    """The ``forward`` of one LlamaDecoderLayer."""

    def __init__(self, layer: Any, index: int, shared: ForwardPass) -> None:
        self.layer = layer
        self.shared = shared
        self.input_norm: nn.Module = layer.input_layernorm
        self.mid_norm: nn.Module = layer.post_attention_layernorm
        self.is_first = index == 0
        self.mid_site = site_index("resid_mid", index)
        self.post_site = site_index("resid_post", index)
        # Set by attach: what runs next. The final norm is called as a module, so it has no forward of ours
        # to compare with but its own; a layer's input norm must have none.
        self.next_layer: nn.Module | None = None
        self.next_norm: nn.Module = self.input_norm
        self.next_forward: Any = None
        self.next_norm_forward: Any = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The layer's contract in transformers: hidden states in, hidden states out."""
        attention: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        layer, shared = self.layer, self.shared
        if layer.training and layer.gradient_checkpointing:
            return self._checkpointed(hidden_states, attention)
        pre = shared.steering(0) if self.is_first else None
        mid, post = shared.steering(self.mid_site), shared.steering(self.post_site)
        return self._run(hidden_states, attention, pre, mid, post, hand_over=True)

    def _checkpointed(self, hidden_states: Tensor, attention: dict[str, Any]) -> Tensor:
        """Under gradient checkpointing the layer is one function that backward runs a second time: no
        cache, as in transformers, no hand-over, and steering by value."""
        attention |= {"past_key_values": None, "use_cache": False}
        pre = self.shared.frozen(0) if self.is_first else None
        mid, post = self.shared.frozen(self.mid_site), self.shared.frozen(self.post_site)
        run = partial(self._run, attention=attention, pre=pre, mid=mid, post=post, hand_over=False)
        checkpoint: Callable[..., Tensor] = self.layer._gradient_checkpointing_func
        return checkpoint(run, hidden_states)

    def _run(
        self,
        hidden_states: Tensor,
        attention: dict[str, Any],
        pre: Steering | None,
        mid: Steering,
        post: Steering,
        hand_over: bool,
    ) -> Tensor:
        layer, shared, input_norm, mid_norm = (
            self.layer,
            self.shared,
            self.input_norm,
            self.mid_norm,
        )
        fusing = shared.fusing
        stream: Tensor = hidden_states
        if pre is not None:
            stream, normed = self._steer_norm(stream, pre)
        else:
            taken = shared.take(stream, input_norm) if hand_over else None
            normed = input_norm(stream) if taken is None else taken
        branch, _ = layer.self_attn(hidden_states=normed, **attention)
        if branch.dtype is not stream.dtype:
            branch, stream = _same_dtype(branch, stream)
        if fusing and _at_hand(mid_norm, stream):
            stream, normed = shared.ops.steer_add_rms_norm(
                branch, stream, mid_norm.weight, mid_norm.variance_epsilon, mid
            )
        else:
            stream = shared.ops.steer_add(branch, stream, mid)
            normed = mid_norm(stream)
        branch = layer.mlp(normed)
        if branch.dtype is not stream.dtype:
            branch, stream = _same_dtype(branch, stream)
        norm = self.next_norm
        if fusing and hand_over and self._next_is_ours(stream):
            stream, normed = shared.ops.steer_add_rms_norm(
                branch, stream, norm.weight, norm.variance_epsilon, post
            )
            shared.offer(stream, norm, normed)
        else:
            stream = shared.ops.steer_add(branch, stream, post)
        return stream

    def _steer_norm(self, stream: Tensor, pre: Steering) -> tuple[Tensor, Tensor]:
        """resid_pre of layer 0: there is no branch to add."""
        norm = self.input_norm
        if self.shared.fusing and _at_hand(norm, stream):
            pair: tuple[Tensor, Tensor] = self.shared.ops.steer_rms_norm(
                stream, norm.weight, norm.variance_epsilon, pre
            )
            return pair
        stream = self.shared.ops.steer(stream, pre)
        return stream, norm(stream)

    def _next_is_ours(self, stream: Tensor) -> bool:
        following = self.next_layer
        if following is not None and (
            following.__dict__.get("forward") is not self.next_forward or not _unobserved(following)
        ):
            return False
        return _unobserved(self.layer) and _at_hand(self.next_norm, stream, self.next_norm_forward)


def _same_dtype(branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast the branch is narrower than the stream; eager addition widens it."""
    wide = torch.promote_types(branch.dtype, stream.dtype)
    return branch.to(wide), stream.to(wide)


class SteeredNorm:
    """The ``forward`` of the final norm: what the last layer handed over, or the original."""

    def __init__(
        self, norm: nn.Module, shared: ForwardPass, original: Callable[[Tensor], Tensor]
    ) -> None:
        self.norm, self.shared, self.original = norm, shared, original

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = self.shared.take(hidden_states, self.norm)
        return self.original(hidden_states) if normed is None else normed


class SteeredModel:
    """The ``forward`` of the LlamaModel: makes the route, then runs the original."""

    def __init__(self, model: Any, shared: ForwardPass, original: Callable[..., Any]) -> None:
        self.model, self.shared, self.original = model, shared, original

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        given = input_ids if input_ids is not None else inputs_embeds
        if given is not None:
            weight = self.model.embed_tokens.weight
            device = given.device if weight.device.type == "meta" else weight.device
            shape = given.shape[:2]
            self.shared.fusing = not _global_hooks()
            self.shared.begin(shape, attention_mask, position_ids, past_key_values, device)
        return self.original(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
