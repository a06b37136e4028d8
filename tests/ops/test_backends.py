"""Choosing a backend: auto, by name, by environment; and a package without any compiled part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steerfast
from steerfast import SteerfastError
from steerfast.ops import backends

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[1] / "shared"


def test_names():
    with pytest.raises(
        ValueError, match="unknown backend 'tpu'; known: auto, cuda, triton, cpu, reference"
    ):
        backends.resolve("tpu", CPU)
    assert backends.resolve("reference", CPU) == "reference"
    assert backends.resolve("auto", CPU) == backends.resolve(None, CPU)


def test_a_backend_asked_for_is_never_replaced():
    if not torch.cuda.is_available():
        for name in ("cuda", "triton"):
            with pytest.raises(SteerfastError, match=f"backend '{name}' is not available"):
                backends.resolve(name, CPU)


def test_every_status_has_a_reason():
    assert [status.name for status in backends.statuses()] == list(backends.NAMES)
    assert all(status.detail for status in backends.statuses())


def python(code, **environment):
    """Run code in a fresh interpreter; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_environment_chooses():
    code = "import torch; from steerfast.ops import backends; print(backends.resolve(None, torch.device('cpu')))"
    assert python(code, STEERFAST_BACKEND="reference") == "reference"


@pytest.mark.skipif(backends.build_info() is None, reason="no compiled part")
def test_the_instruction_set_can_be_chosen():
    code = "from steerfast import ops; import torch; print(torch.ops.steerfast.cpu_isa())"
    assert python(code, STEERFAST_CPU_ISA="baseline") == "baseline"
    with pytest.raises(SteerfastError, match="not built or not supported"):
        backends.select_cpu_isa("sse9")


def test_importing_is_light():
    code = "import sys, steerfast; print([m for m in ('triton', 'transformers', 'matplotlib') if m in sys.modules])"
    assert python(code) == "[]"


def test_without_a_compiled_part(tmp_path):
    """A copy of the package with every .so left out: the reference steers, and env says why."""
    package = Path(steerfast.__file__).parent
    skip = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    shutil.copytree(package, tmp_path / "steerfast", ignore=skip)
    code = """
import sys; sys.path.insert(0, PATH)
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import torch, steerfast
from steerfast import SteeringVector, attach, steer
from steerfast.ops import backends
assert steerfast.__file__.startswith(PATH)
sys.path.append(SHARED)
from tiny_llama import tiny_llama
model = tiny_llama(hidden=16, layers=2)
ids = torch.arange(5)[None]
with torch.no_grad(), attach(model) as handle:
    plain = model(ids).logits
    with handle.use(steer(SteeringVector("v", {0: torch.ones(16)}), 5.0)):
        assert not torch.equal(model(ids).logits, plain)
print(handle.backend, backends.build_info(), backends.statuses()[2].detail)
""".replace("PATH", repr(str(tmp_path))).replace("SHARED", repr(str(SHARED)))
    said = python(code)
    assert said.startswith("reference None not built; run STEERFAST_BUILD=cpu")
