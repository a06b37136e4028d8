"""Rows too wide for registers: how much shared memory the kernel for them asks for, and who takes them where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess

import emulated
import pytest
import torch
from emulated import builder
from filelock import FileLock

from steerfast import testing

pytestmark = pytest.mark.skipif(bool(builder.missing()), reason=str(builder.missing()))

WITHOUT_ASKING = (
    48 << 10
)  # what CUDA gives a block, its kernel's own included, unless it was asked for more
KIB = 1 << 10


@pytest.fixture(scope="module")
def driver() -> emulated.Driver:
    return emulated.build()


def case_of(dtype: torch.dtype, width: int) -> testing.Case:
    return next(testing.cases([dtype], [width], [2]))


def launched(
    driver: emulated.Driver, dtype: torch.dtype, widths: list[int], **device: int
) -> list[tuple[emulated.Result, emulated.Launch]]:
    """A row or two of each width, checked, and how it was launched."""
    cases = [case_of(dtype, width) for width in widths]
    calls = []
    for case in cases:
        x, residual, weight, eps, steering, order = case.arguments
        given = {"x": x, "weight": weight, "eps": eps, "steering": steering}
        calls.append(emulated.call(residual, **given, fp32_norm=order == "fp32"))
    results = driver.run(calls, **device)
    for case, result in zip(cases, results, strict=True):
        case.check(result.stream, result.normed)
    return [(result, result.launches[0]) for result in results]


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_the_kernels_own_shared_memory_counts(driver: emulated.Driver, dtype: torch.dtype) -> None:
    device, vector = {"shared": 64, "granted": 64}, 16 // dtype.itemsize
    [(_, probe)] = launched(driver, dtype, [16 * KIB // dtype.itemsize * 2 + vector], **device)
    assert "rows_in_shared_memory" in probe.kernel
    assert probe.own > 0
    assert probe.own % 16 == 0
    unasked = (WITHOUT_ASKING - probe.own) // dtype.itemsize
    most = (64 * KIB - probe.own) // dtype.itemsize
    widths = [unasked, unasked + vector, most, most + vector]
    launches = [launch for _, launch in launched(driver, dtype, widths, **device)]
    kernels = [launch.kernel.split("<")[0] for launch in launches]
    assert kernels == ["rows_in_shared_memory"] * 3 + ["rows_by_rereading"]
    assert [launch.asked for launch in launches] == [
        *(width * dtype.itemsize for width in widths[:3]),
        0,
    ]
    assert [launch.allowed for launch in launches] == [
        WITHOUT_ASKING,  # no wider than that: nothing is asked for
        64 * KIB,
        64 * KIB,
        WITHOUT_ASKING,
    ]


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("granted", [32, 64], ids=["at once", "after asking"])
def test_a_launch_that_is_refused_is_left_to_the_kernel_that_needs_none(
    driver: emulated.Driver, dtype: torch.dtype, granted: int
) -> None:
    """The device says that there is more than its launches get."""
    width = granted * KIB // dtype.itemsize
    [(wanted, right)] = launched(driver, dtype, [width])
    [(got, refused)] = launched(driver, dtype, [width], granted=granted)
    assert right.kernel.startswith("rows_in_shared_memory")
    assert refused.kernel.startswith("rows_by_rereading")
    for one, other in ((got.stream, wanted.stream), (got.normed, wanted.normed)):
        assert torch.equal(testing.bits(one), testing.bits(other))


def test_the_emulation_counts_as_ptxas_does(driver: emulated.Driver) -> None:
    """Where today's sources are built: of both kernels that a table with programs may launch."""
    reported = _shared_of_kernels()
    if reported is None:
        pytest.skip("build/ninja holds no CUDA build of these sources")
    for dtype in testing.DTYPES:
        for width in (64, 33, 8208 * 4 // dtype.itemsize):
            [(_, launch)] = launched(driver, dtype, [width])
            assert launch.own == -(-reported[launch.kernel] // 16) * 16, launch.kernel


def _shared_of_kernels() -> dict[str, int] | None:
    """Bytes of static shared memory in ptxas's reports of the last build, if that was of today's sources."""
    if shutil.which("c++filt") is None:
        return None
    with FileLock(builder.ROOT / "build/ninja.lock"):  # test_cuda_build.py may be building
        logs = list((builder.ROOT / "build/ninja").glob("*.cu.o.log"))
        sources = [
            path for path in builder.CSRC.glob("*.*") if path.suffix in (".cu", ".cuh", ".h")
        ]
        newest = max(path.stat().st_mtime for path in sources)
        old = not logs or min(log.stat().st_mtime for log in logs) < newest
        reports = "".join(log.read_text() for log in logs)
    if old:
        return None
    found = {}
    for kernel, report in re.findall(
        r"Compiling entry function '(\w+)'(.*?Used \d+ registers.*?)\n", reports, re.DOTALL
    ):
        shared = re.search(r"(\d+) bytes smem", report)
        found[kernel] = int(shared[1]) if shared else 0
    done = subprocess.run(["c++filt", *found], capture_output=True, text=True, check=True)
    return {
        emulated.kernel_in(name): shared
        for name, shared in zip(done.stdout.splitlines(), found.values(), strict=True)
    }
