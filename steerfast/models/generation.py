"""``generate``, patched: it knows the prompt lengths and fills the route before every step.

Positions come from the 2-D mask that ``prepare_inputs_for_generation`` is given, so KV cache, left
padding, beams, chunked prefill and speculative decoding need no special case, and a compiled model
finds its route ready in fixed buffers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from steerfast.models.forward_pass import ForwardPass, Generation


class SteeredGenerate:
    """Stands in for ``model.generate``."""

    def __init__(self, shared: ForwardPass, original: Callable[..., Any]) -> None:
        self.shared, self.original = shared, original
        self.__signature__ = inspect.signature(original)  # transformers inspects it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared
        given = args[0] if args else kwargs.get("inputs")
        candidates = (given, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((tensor for tensor in candidates if tensor is not None), None)
        if prompt is None:  # transformers starts from the BOS token
            batch, width = 1, 1
        else:
            batch, width = prompt.shape[0], prompt.shape[1]
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2:  # covers a given cache, which the prompt may not
            width = mask.shape[1]
        if shared.count is not None and batch != shared.count:
            raise ValueError(
                f"use() was given {shared.count} plans, but generate got {batch} prompts; give one "
                "plan (or None) per prompt, or a single plan for all"
            )
        outer, shared.generation = shared.generation, Generation(width)
        try:
            return self.original(*args, **kwargs)
        finally:
            shared.generation = outer
            shared.cancel_route()


class SteeredPrepare:
    """Stands in for ``model.prepare_inputs_for_generation``."""

    def __init__(self, shared: ForwardPass, original: Callable[..., Any]) -> None:
        self.shared, self.original = shared, original
        self.__signature__ = inspect.signature(original)

    def __call__(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = self.original(input_ids, *args, **kwargs)
        if self.shared.generation is not None:
            tokens = prepared.get("input_ids")
            tokens = prepared["inputs_embeds"] if tokens is None else tokens
            mask = kwargs.get("attention_mask")  # before a static cache turns it into a 4-D one
            self.shared.route_generated(tokens.shape[:2], mask, kwargs.get("past_key_values"))
        return prepared
