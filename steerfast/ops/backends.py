"""Which implementations of the ops exist here, why the others do not, and which one is used.

The only module that reads the environment: ``STEERFAST_BACKEND`` (auto | cuda | triton | cpu |
reference) and ``STEERFAST_CPU_ISA`` (avx512 | avx2 | baseline, for tests).
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from steerfast.errors import SteerfastError

NAMES = ("cuda", "triton", "cpu", "reference")  # the order in which "auto" tries them
_LIBRARIES = Path(__file__).parents[1] / "lib"


@dataclass(frozen=True)
class Status:
    """One backend: whether it can run here, and in a few words what it is or why it cannot."""

    name: str
    available: bool
    detail: str


_load_errors: dict[str, str] = {}


@cache
def load() -> None:
    """Load the compiled operator libraries that exist and fit this torch; remember why others do not."""
    _load_library("cpu")
    if torch.version.cuda is None:
        _load_errors["cuda"] = f"torch {torch.__version__} is built without CUDA"
    else:
        _load_library("cuda")
    isa = os.environ.get("STEERFAST_CPU_ISA")
    if isa:
        select_cpu_isa(isa)


def _load_library(name: str) -> None:
    path = _LIBRARIES / f"libsteerfast_{name}.so"
    if not path.exists():
        _load_errors[name] = (
            f"not built; run STEERFAST_BUILD={name} pip install --no-build-isolation -e ."
        )
        return
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        _load_errors[name] = f"built, but does not load: {error}"


def select_cpu_isa(name: str) -> None:
    """Use another compiled copy of the CPU kernel: avx512, avx2 or baseline. All give the same bits."""
    if "cpu" in _load_errors:
        raise SteerfastError(f"no CPU kernel to choose from: {_load_errors['cpu']}")
    if not torch.ops.steerfast.select_cpu_isa(name):
        raise SteerfastError(
            f"instruction set {name!r} is not built or not supported here; try baseline"
        )


def build_info() -> dict[str, Any] | None:
    """What the compiled part was built with, or None without one."""
    module = compiled_module()
    return None if module is None else module.build_info()


def compiled_module() -> Any:
    """The small pybind11 module ``_C``, or None where nothing was built."""
    if importlib.util.find_spec("steerfast._C") is None:
        return None
    from steerfast import _C

    return _C


def statuses() -> list[Status]:
    """Every backend in the order of preference."""
    load()
    found = [
        Status("cuda", "cuda" not in _load_errors and torch.cuda.is_available(), _cuda_detail())
    ]
    found.append(_triton_status())
    if "cpu" in _load_errors:
        found.append(Status("cpu", False, _load_errors["cpu"]))
    else:
        found.append(Status("cpu", True, f"C++, running {torch.ops.steerfast.cpu_isa()}"))
    found.append(Status("reference", True, "plain torch, any device, differentiable"))
    return found


def _cuda_detail() -> str:
    if "cuda" in _load_errors:
        return _load_errors["cuda"]
    return "CUDA kernels" if torch.cuda.is_available() else "torch sees no GPU"


def _triton_status() -> Status:
    if importlib.util.find_spec("triton") is None:
        return Status("triton", False, "the triton package is not installed")
    if not torch.cuda.is_available():
        return Status("triton", False, "needs a GPU")
    return Status("triton", True, "Triton kernels")


def resolve(name: str | None, device: torch.device) -> str:
    """The backend to use on a device: the one asked for, or with ``auto`` (None: the environment's
    choice, else auto) the first that is available there.

    Raises ValueError for an unknown name, SteerfastError for one that cannot run on this device.
    """
    name = name or os.environ.get("STEERFAST_BACKEND", "auto")
    if name not in ("auto", *NAMES):
        raise ValueError(f"unknown backend {name!r}; known: auto, {', '.join(NAMES)}")
    runs_on = {"cuda": ("cuda",), "triton": ("cuda",), "cpu": ("cpu",), "reference": (device.type,)}
    for status in statuses():
        fits = device.type in runs_on[status.name]
        if name == "auto" and status.available and fits:
            return status.name
        if name == status.name:
            if not status.available:
                raise SteerfastError(f"backend {name!r} is not available: {status.detail}")
            if not fits:
                raise SteerfastError(f"backend {name!r} does not run on {device.type}")
            return name
    raise AssertionError("the reference backend runs everywhere")
