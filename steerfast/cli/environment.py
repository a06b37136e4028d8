"""``steerfast env``: backends, build and versions, as plain data."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from steerfast import __version__, ops
from steerfast.ops import backends

PACKAGES = ("torch", "transformers", "triton", "safetensors", "accelerate", "numpy")


def describe() -> dict[str, Any]:
    """Backends with reasons, the choice of ``auto`` per device, what was built, and versions."""
    assert ops  # importing it defines the operators, which the CPU backend is asked about
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    versions = {"steerfast": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "backends": [asdict(status) for status in backends.statuses()],
        "auto": {device: backends.resolve(None, torch.device(device)) for device in devices},
        "build": backends.build_info() or "not recorded: the _C module was not built",
        "versions": versions,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def describe_model(loaded: Any) -> dict[str, Any]:
    """What of ``inspect_model`` is said beside the backends: decoder, numbers of layers and of fused ones, and how it is known."""
    from steerfast.models.inspection import inspect_model

    facts = inspect_model(loaded.model)
    told = ("decoder", "layers", "fused", "by", "summary")
    return {"name": loaded.name, **{name: facts[name] for name in told}}
