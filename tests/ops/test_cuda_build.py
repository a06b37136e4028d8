"""The CUDA library, on any machine with nvcc: no GPU and no CUDA in torch is needed to build and load it.

What the kernels compute is tested where there is a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from gpu import cuda_registers

ROOT = Path(__file__).parents[2]
ARCHS = ("sm_80", "sm_90", "sm_100")
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'\n"
    r".*Function properties.*\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


def has_nvcc() -> bool:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") is not None or any(
        (Path(home) / "bin/nvcc").exists() for home in homes if home
    )


pytestmark = pytest.mark.skipif(
    not has_nvcc(), reason="nvcc is not on PATH, in CUDA_HOME or /usr/local/cuda"
)


def build(target: Path) -> str:
    """Builds in build/ninja, as an installation does, so that what is there already is used; not in place."""
    with FileLock(ROOT / "build/ninja.lock"):  # another process may be reading the reports
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--build-lib", str(target)],
            cwd=ROOT,
            env={**os.environ, "STEERFAST_BUILD": "cuda", "STEERFAST_CUDA_ARCHS": "80,90,100"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("build")
    build(target)
    return target / "steerfast/lib/libsteerfast_cuda.so"


def cuobjdump() -> str:
    """CUDA's tool, or the copy that the triton package carries."""
    found = shutil.which("cuobjdump")
    carried = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin/cuobjdump"
    if found is None and not carried.exists():
        pytest.skip("cuobjdump is neither on PATH nor in the triton package")
    return found or str(carried)


def test_no_kernel_spills_on_any_architecture(library: Path) -> None:
    text = "".join(log.read_text() for log in sorted((ROOT / "build/ninja").glob("*.cu.o.log")))
    reports = list(REPORT.finditer(text))
    assert len(reports) == text.count("Compiling entry function"), (
        "a report that this test cannot read"
    )
    kernels = {arch: {r["kernel"] for r in reports if r["arch"] == arch} for arch in ARCHS}
    assert kernels["sm_80"] == kernels["sm_90"] == kernels["sm_100"]
    assert any("rows_in_registers" in kernel for kernel in kernels["sm_90"])
    assert any("rows_by_rereading" in kernel for kernel in kernels["sm_90"])
    spills = [
        f"{r['kernel']} {r['arch']}: {r['stack']} stack, {r['stores']} stores, {r['loads']} loads"
        for r in reports
        if any(int(r[what]) for what in ("stack", "stores", "loads"))
    ]
    assert not spills, "\n".join(spills)


def test_the_committed_registers_are_those_of_these_sources(library: Path) -> None:
    with FileLock(ROOT / "build/ninja.lock"):
        built, committed = cuda_registers.table(), cuda_registers.RESULT.read_text()
    by = [re.search(r"^By (.*)\.$", text, re.M)[1] for text in (built, committed)]
    if by[0] != by[1]:
        pytest.skip(f"this is {by[0]}, and the committed table was made by {by[1]}")
    assert committed == built, "run `python -m gpu.cuda_registers` in benchmarks/"


def test_machine_code_of_every_architecture_and_ptx_of_the_last(library: Path) -> None:
    def listed(flag: str) -> str:
        return subprocess.run(
            [cuobjdump(), flag, str(library)], check=True, capture_output=True, text=True
        ).stdout

    assert set(re.findall(r"steer\.(sm_\w+)\.cubin", listed("-lelf"))) == set(ARCHS)
    assert set(re.findall(r"steer\.(sm_\w+)\.ptx", listed("-lptx"))) == {ARCHS[-1]}


def test_a_second_build_does_nothing(library: Path, tmp_path: Path) -> None:
    assert "no work to do" in build(tmp_path)


LOAD = """
import sys, torch
from steerfast import ops
from steerfast.ops.forms import SCHEMAS
from steerfast.ops.records import Steering

def steered(slot):
    x = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 64)
    one = torch.tensor([[0, 0, 0, 0]], dtype=torch.int32)
    none = torch.zeros(0, 16, 12, dtype=torch.int32)
    slots = torch.tensor([slot, -1, 0], dtype=torch.int32)
    steering = Steering(slots, torch.ones(3), one, none, torch.ones(1, 64))
    return ops.steer_add_rms_norm(x, -x / 3, torch.ones(64), 1e-6, steering)

before = steered(0)
torch.ops.load_library(sys.argv[1])
for op in SCHEMAS:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"steerfast::{op}", "CUDA"), op
assert all(torch.equal(a, b) for a, b in zip(before, steered(0), strict=True))
try:
    steered(7)
except ValueError as error:
    assert "row_slot[0] is 7" in str(error), error  # said for the CPU kernel: neither CUDA nor the reference
else:
    raise AssertionError("the CPU kernel takes a slot outside its table")
assert torch.ops.steerfast.select_cuda_overlap(False) and not torch.ops.steerfast.select_cuda_overlap(True)
print("loaded")
"""


@pytest.mark.skipif(
    torch.version.cuda is not None, reason="this torch has CUDA: backends.load loads the library"
)
def test_loads_beside_a_cpu_only_torch_and_leaves_cpu_tensors_to_the_cpu_kernel(
    library: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(library)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["loaded"]
