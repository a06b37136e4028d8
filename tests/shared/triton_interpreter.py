"""Whether Triton's interpreter can run the kernels here."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version


def missing() -> str | None:
    """Why it cannot, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed"
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        return "Triton's interpreter before 3.7 has no run-time loops with numpy 2.4"
    return None
