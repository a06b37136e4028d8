"""The prefix cache, told apart by steering: the key of a block says how its positions were steered.

vLLM knows a block of keys and values by its tokens and those before. Steered ones are others; but only from the first
steered position on, and only as far as plans differ (``wire.block_key``). A plan that steers nothing of a prompt shares
that prompt with everybody, and an answer that becomes part of the next prompt is found again where it was
steered alike, and not where it was not.
"""

from __future__ import annotations

from typing import Any

from steerfast.errors import SteerfastError
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.wire import FIELD, WIRE, block_key

# The function is imported by name into each of them.
_MODULES = (
    "vllm.v1.core.kv_cache_utils",
    "vllm.v1.core.block_pool",
    "vllm.v1.simple_kv_offload.manager",
)


def install() -> None:
    """Add our key wherever keys of a block are made, and let no plan in that has not been through a front end."""
    for module in _MODULES:
        wrap(module, "generate_block_hash_extra_keys", _keys)
    wrap("vllm.v1.request:Request", "__init__", _admit)


def wire_of(request: Any) -> dict[str, Any] | None:
    """The wire form of a request's plan, or None."""
    params = request.sampling_params
    extra = None if params is None else params.extra_args
    return extra.get(WIRE) if extra else None


def _keys(
    original: Any, request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> Any:
    keys, place = original(request, start_token_idx, end_token_idx, start_mm_idx)
    wire = wire_of(request)
    key = None if wire is None else block_key(wire, start_token_idx, end_token_idx)
    if key is not None:
        keys = (*(keys or ()), ("steerfast", key))
    return keys, place


def _admit(original: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    original(request, *args, **kwargs)
    params, wire = request.sampling_params, wire_of(request)
    raw = params is not None and params.extra_args and params.extra_args.get(FIELD) is not None
    if raw or (wire is not None and "share" not in wire):
        raise SteerfastError(
            f"request {request.request_id} carries a plan that {'the front end' if raw else 'the engine core'} has not checked; "
            "it would run unsteered"
        )
