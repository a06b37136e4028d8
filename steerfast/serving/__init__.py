"""Many requests, a plan each; with a plugin for vLLM.

Plans come from outside here, so they are read with suspicion: sizes, names, doses. ``vllm/`` has a module for each place in
the engine where the plugin stands; what goes over the wire between its processes is a plan by value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerfast.serving.batch import Completion, Request, generate_batch
    from steerfast.serving.client import armed, openai_args

_LAZY = {
    "Completion": "batch",
    "Request": "batch",
    "generate_batch": "batch",
    "armed": "client",
    "openai_args": "client",
}

__all__ = ["Completion", "Request", "armed", "generate_batch", "openai_args"]


def __getattr__(name: str) -> Any:
    """On first use, so that the plugin's entry point, which stands below, imports nothing that could fail."""
    if name not in _LAZY:
        raise AttributeError(f"module 'steerfast.serving' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"steerfast.serving.{_LAZY[name]}"), name)
