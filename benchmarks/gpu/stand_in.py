"""What the GPU's programs run on: the GPU, or in a dry run (``STEERFAST_DRY_RUN=1``) what stands in for it.

Tensors are on the CPU then, graphs are recorded ones (``recorded``), and the CUDA library is its own source, compiled for
the host by tests/ops/emulation.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

DRY = os.environ.get("STEERFAST_DRY_RUN") == "1"
DEVICE = "cpu" if DRY else "cuda"
EMULATED = Path(__file__).parents[2] / "tests" / "ops" / "emulated.py"


def end_of(seconds: float) -> float:
    """When a stage has to be over, by ``time.time()``: so long after it was begun, which was before this was imported."""
    return float(os.environ.get("STEERFAST_STAGE_BEGUN", time.time())) + seconds


def need_a_device() -> None:
    """SystemExit where there is neither a GPU nor a dry run."""
    if not DRY and not torch.cuda.is_available():
        sys.exit("this needs a GPU that torch can use; gpu_check.sh --dry-run goes without")


def cuda_library() -> Any:
    """The ops on the CUDA kernels: ``steerfast.ops``, or their emulation. SystemExit where neither can be had."""
    need_a_device()
    if DRY:
        return _emulated()
    from steerfast import ops
    from steerfast.ops import backends

    backends.load()
    if not torch._C._dispatch_has_kernel_for_dispatch_key("steerfast::steer", "CUDA"):
        detail = next(status.detail for status in backends.statuses() if status.name == "cuda")
        sys.exit(f"the CUDA library is not loaded: {detail}; see `steerfast env`")
    return ops


def triton_library() -> Any:
    """The ops on the Triton kernels, interpreted in a dry run."""
    need_a_device()
    if DRY:
        os.environ["TRITON_INTERPRET"] = "1"
    from steerfast.ops import triton

    return triton


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def _emulated() -> Any:
    spec = importlib.util.spec_from_file_location("emulated", EMULATED)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["emulated"] = module
    assert spec.loader is not None
    spec.loader.exec_module(module)
    if module.builder.missing():
        sys.exit(f"nothing can be emulated here: {module.builder.missing()}")
    return module.Ops(module.build(), multiprocessors=2, blocks=2, major=9)
