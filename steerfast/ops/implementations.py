"""Which module's ops a backend is."""

from __future__ import annotations

from types import ModuleType

from steerfast.ops import fused, reference, triton

_MODULES = {"reference": reference, "triton": triton, "cpu": fused, "cuda": fused}


def implementation(backend: str) -> ModuleType:
    """The module with the ops of a backend, as ``backends.resolve`` names it."""
    return _MODULES[backend]
