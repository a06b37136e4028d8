"""The suite catches bugs: each is planted in a copy of a backend's source, which must then fail.

What is planted stands in mutants.py. Where a text to mutate is gone, tests here fail and want a new one.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated
import mutants
import pytest
import torch

import steerfast
from steerfast import testing
from steerfast.ops import backends

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PACKAGE = Path(steerfast.__file__).parent
CUDA = mutants.COEFFICIENTS | mutants.CUDA


# First what is quick or tells most: the rest seldom runs but for the source without a bug.
FIRST = ("zero-rows", "slerp-axis", "feature", "gate-cosine", "gate-hard", "map")


def caught(backend: Any, laws: Sequence[str] = (), far: Sequence[str] = ()) -> str:
    """What the first failing law or case says, or nothing. far: laws that few bugs need, so they come last."""
    cases = sorted(testing.cases(quick=True), key=lambda case: case.family not in FIRST)
    checks: list[Callable[[], None]] = [
        lambda law=law: testing.EXACT_LAWS[law](backend, torch.float32, 64) for law in laws
    ]
    checks += [
        lambda case=case: case.check(*backend.steer_add_rms_norm(*case.arguments)) for case in cases
    ]
    checks += [lambda law=law: testing.FAR_LAWS[law](backend, torch.float32, 64) for law in far]
    for check in checks:
        try:
            check()
        except AssertionError as error:
            return str(error)
    return ""


class TestReference:
    LAWS = ("unsteered_rows_keep_their_bits", "forms_agree", "edits_show_at_once")

    def test_unchanged(self, monkeypatch):
        assert not caught(reference_with(None, monkeypatch), self.LAWS)

    @pytest.mark.parametrize("name", mutants.REFERENCE)
    def test_mutant(self, name, monkeypatch):
        assert caught(reference_with(mutants.REFERENCE[name], monkeypatch), self.LAWS)


def reference_with(mutant: mutants.Mutant | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``steerfast.ops.reference``, built anew with a bug."""
    for name in ("contribution", "reference"):
        text = (PACKAGE / f"ops/{name}.py").read_text()
        if mutant and mutant.file == f"ops/{name}.py":
            text = mutant.planted_in(text)
        module = ModuleType(f"steerfast.ops.{name}")
        monkeypatch.setitem(sys.modules, f"steerfast.ops.{name}", module)
        exec(compile(text, f"mutant of {name}.py", "exec"), module.__dict__)
    return module


# The CPU kernel without torch's operators around it, which take long to compile.
CALL_ROWS = """
#include "planted.h"
#include "steer.h"
using namespace steerfast;
namespace steerfast::STEERFAST_ISA { void steer_rows(const SteerParams&, int64_t, int64_t); }
extern "C" void plant(int which) { planted = which; }
extern "C" void steer_rows(int64_t rows, int64_t width, int32_t dtype, int32_t weight_dtype, float eps,
                           bool fp32_norm, const void* x, const void* residual, void* stream,
                           const void* weight, void* normed, const int32_t* row_slot,
                           const float* row_gain, const Record* records, int64_t slots,
                           const Read* reads, int64_t programs, const float* bank, int64_t bank_rows) {
  SteerParams p;
  p.rows = rows, p.width = width, p.eps = eps, p.fp32_norm = fp32_norm;
  p.dtype = Dtype(dtype), p.weight_dtype = Dtype(weight_dtype);
  p.x = x, p.residual = residual, p.stream = stream, p.weight = weight, p.normed = normed;
  p.x_stride = p.residual_stride = p.stream_stride = p.normed_stride = width;
  p.row_slot = row_slot, p.row_gain = row_gain, p.records = records, p.slots = slots;
  p.reads = reads, p.programs = programs, p.bank = bank, p.bank_rows = bank_rows;
  STEERFAST_ISA::steer_rows(p, 0, rows);
}
"""


class CpuRows:
    """``steer_add_rms_norm``, ``steer_add`` and ``steer`` of a copy of csrc, built for one instruction set."""

    def __init__(self, csrc: Path, isa: str) -> None:
        sources = [
            csrc / "cpu/steer_rows.cpp",
            csrc / "cpu/coefficients.cpp",
            csrc / "call_rows.cpp",
        ]
        sources[-1].write_text(CALL_ROWS)
        library = csrc / "rows.so"
        flags = ["-O0", "-w", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", f"-I{csrc}"]
        flags += [f"-DSTEERFAST_ISA={isa}", *isa_flags(isa)]
        command = [emulated.builder.compiler(), *flags, *map(str, sources), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        self.library = ctypes.CDLL(str(library))

    def steer_add_rms_norm(self, x, residual, weight, eps, steering, norm_order="hf"):
        stream = torch.full_like(residual, torch.nan)
        normed = None
        if weight is not None:
            normed = torch.full_like(residual, torch.nan, dtype=weight.dtype)
        slot, gain, records, reads, bank = steering
        address = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (
            x, residual, stream, weight, normed, slot, gain, records, reads, bank)]  # fmt: skip
        self.library.steer_rows(
            *map(ctypes.c_int64, residual.shape),
            emulated.DTYPES[residual.dtype],
            emulated.DTYPES[residual.dtype if weight is None else weight.dtype],
            ctypes.c_float(eps),
            norm_order == "fp32",
            *address[:8],
            ctypes.c_int64(len(records)),
            address[8],
            ctypes.c_int64(len(reads)),
            address[9],
            ctypes.c_int64(len(bank)),
        )
        return stream, normed

    def steer_add(self, x, residual, steering):
        return self.steer_add_rms_norm(x, residual, None, 0.0, steering)[0]

    def steer(self, stream, steering):
        return self.steer_add(None, stream, steering)


def isa_flags(isa: str) -> list[str]:
    spec = importlib.util.spec_from_file_location("ninja_file", mutants.CSRC / "ninja_file.py")
    ninja_file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ninja_file)
    return ninja_file.isas()[isa]


def cpu_isa() -> str:
    cpu = any(status.name == "cpu" and status.available for status in backends.statuses())
    return torch.ops.steerfast.cpu_isa() if cpu else "baseline"


@pytest.fixture(scope="module")
def cpu_rows(tmp_path_factory):
    return CpuRows(mutants.planted_copy(tmp_path_factory.mktemp("cpu"), CPU), cpu_isa())


@pytest.fixture(scope="module")
def emulated_cuda(tmp_path_factory):
    csrc = mutants.planted_copy(tmp_path_factory.mktemp("cuda"), CUDA)
    return emulated.Ops(emulated.build(csrc))


CPU = mutants.COEFFICIENTS | mutants.CPU | (mutants.CPU_PAIRS if cpu_isa() == "avx512" else {})


@pytest.mark.skipif(emulated.builder.compiler() is None, reason="there is no C++ compiler")
class TestCpu:
    """The instruction set that the processor has, since rows are paired on some only."""

    LAWS = ("unsteered_rows_keep_their_bits",), ("finishes_reach_far",)

    def test_unchanged(self, cpu_rows):
        cpu_rows.library.plant(0)
        assert not caught(cpu_rows, *self.LAWS)

    @pytest.mark.parametrize("name", CPU)
    def test_mutant(self, cpu_rows, name):
        CPU[name].assert_fits((mutants.CSRC / CPU[name].file).read_text())
        cpu_rows.library.plant(1 + list(CPU).index(name))
        assert caught(cpu_rows, *self.LAWS)


@pytest.mark.skipif(not INTERPRETED, reason="in the process that test_triton starts")
class TestTriton:
    LAWS = ("unsteered_rows_keep_their_bits",), ("finishes_reach_far",)

    def test_unchanged(self, tmp_path, monkeypatch):
        assert not caught(triton_with(None, tmp_path, monkeypatch), *self.LAWS)

    @pytest.mark.parametrize("name", mutants.TRITON)
    def test_mutant(self, name, tmp_path, monkeypatch):
        backend = triton_with(mutants.TRITON[name], tmp_path, monkeypatch)
        assert caught(backend, *self.LAWS)


def triton_with(mutant: mutants.Mutant | None, folder: Path, monkeypatch) -> ModuleType:
    """``steerfast.ops.triton`` on a copy of the kernels with a bug."""
    copy = folder / "kernels"
    shutil.copytree(PACKAGE / "kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant:
        path = copy / mutant.file
        path.write_text(mutant.planted_in(path.read_text()))
    for name in [name for name in sys.modules if name.startswith("steerfast.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    kernels = ModuleType("steerfast.kernels")
    kernels.__path__ = [str(copy)]
    monkeypatch.setitem(sys.modules, "steerfast.kernels", kernels)
    monkeypatch.delitem(sys.modules, "steerfast.ops.triton", raising=False)
    monkeypatch.delattr(steerfast.ops, "triton", raising=False)
    return importlib.import_module("steerfast.ops.triton")


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_triton():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command += ["-k", "TestTriton"]
    done = subprocess.run(
        command, cwd=mutants.CSRC.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{1 + len(mutants.TRITON)} passed" in done.stdout, done.stdout


@pytest.mark.skipif(bool(emulated.builder.missing()), reason=str(emulated.builder.missing()))
class TestEmulatedCuda:
    LAWS = ("unsteered_rows_keep_their_bits",)

    def test_unchanged(self, emulated_cuda, monkeypatch):
        monkeypatch.setenv("STEERFAST_PLANTED", "0")
        assert not caught(emulated_cuda, self.LAWS)

    @pytest.mark.parametrize("name", CUDA)
    def test_mutant(self, emulated_cuda, name, monkeypatch):
        CUDA[name].assert_fits((mutants.CSRC / CUDA[name].file).read_text())
        monkeypatch.setenv("STEERFAST_PLANTED", str(1 + list(CUDA).index(name)))
        assert caught(emulated_cuda, self.LAWS)
