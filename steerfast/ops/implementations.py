"""Which module's ops a backend is."""

from __future__ import annotations

from types import ModuleType

from steerfast.ops import fused, reference, triton

_MODULES = {"reference": reference, "triton": triton}


def implementation(backend: str) -> ModuleType:
    """The module with the ops of a backend, as ``backends.resolve`` names it; ``fused`` is both compiled ones."""
    return _MODULES.get(backend, fused)
