"""Replacing functions of vLLM: once in a process, never one that is not there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from steerfast.errors import SteerfastError

_DONE = "__steerfast_original__"


def wrap(where: str, name: str, around: Callable[..., Any]) -> None:
    """Make ``name`` of a module or class (``package.module`` or ``package.module:Class``) call
    ``around(original, *args, **kwargs)``. Harmless a second time; SteerfastError where there is no such function."""
    module_name, _, class_name = where.partition(":")
    owner: Any = import_module(module_name)
    if class_name:
        owner = getattr(owner, class_name, None)
    original = getattr(owner, name, None)
    if original is None:
        from vllm import __version__

        raise SteerfastError(
            f"vLLM {__version__} has no {where}.{name}, which steering replaces; use a version that "
            "docs/serving.md lists, or VLLM_PLUGINS without steerfast"
        )
    if hasattr(original, _DONE):
        return

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(replacement, _DONE, original)
    setattr(owner, name, replacement)
