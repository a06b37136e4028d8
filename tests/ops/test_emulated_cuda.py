"""The CUDA kernels, run without a GPU: their source compiled for the host, against the definition.

tests/ops/emulation/README.md says what of a GPU is there and what is not. Every call runs under AddressSanitizer
and UndefinedBehaviorSanitizer, on memory that ends where the tensors do.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from steerfast import testing
from steerfast.ops import reference
from steerfast.ops.records import Op, Read


def beside(name: str):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


emulated = beside("emulated")
builder, Layout, call = emulated.builder, emulated.Layout, emulated.call
pytestmark = pytest.mark.skipif(bool(builder.missing()), reason=str(builder.missing()))

# Devices that are small enough for blocks to work on several rows, with and without dependent launch.
FEW = {"multiprocessors": 1, "blocks": 2, "major": 9}
DEVICES = {
    "many blocks": {"multiprocessors": 132, "blocks": 2, "major": 9},
    "few blocks": FEW,
    "no overlap": {"multiprocessors": 2, "blocks": 1, "major": 8},
}
WIDTHS = (1, 7, 63, 64, 100, 576, 1032)
ROWS = (1, 5, 13)
FAULTS = re.findall(
    r'"(\w+)"',
    re.search(r"kNames\[\] = {(.*?)}", (builder.EMULATION / "faults.cu").read_text(), re.S)[1],
)
# Whatever makes threads wait for others. Comments aside: a mutant of one would be as good as before.
BARRIER = re.compile(
    r"^(?!\s*//).*?((?:__sync(?:threads|warp)|cudaGridDependencySynchronize)\([^()]*\);)", re.M
)
BARRIERS = [
    (path.name, number)
    for path in sorted(builder.CSRC.glob("*.*"))
    if path.name != "ops_cuda.cu"
    for number, _ in enumerate(BARRIER.finditer(path.read_text()))
]


@pytest.fixture(scope="module")
def driver():
    return emulated.build()


@pytest.fixture(scope="module")
def faults() -> Path:
    return builder.faults()


def same(a, b) -> bool:
    """The same bits, NaN included."""
    return (a is None and b is None) or torch.equal(testing.bits(a), testing.bits(b))


def call_of(case: testing.Case, **more):
    x, residual, weight, eps, steering, order = case.arguments
    given = {"x": x, "weight": weight, "eps": eps, "steering": steering}
    return call(**{"residual": residual, **given, "fp32_norm": order == "fp32", **more})


def case_of(dtype: torch.dtype, width: int, rows: int) -> testing.Case:
    return next(testing.cases([dtype], [width], [rows]))


def unsteered(steering):
    return steering._replace(row_slot=torch.full_like(steering.row_slot, -1))


def without_reads(steering, room: bool = False):
    """With deltas only; ``room``: the table still has programs, so that another kernel has to run."""
    records = steering.records.clone()
    records[:, 2:] = 0
    return steering._replace(records=records, reads=steering.reads if room else steering.reads[:0])


def run(driver, cases, **options):
    return driver.run([call_of(case) for case in cases], **(options or FEW))


# --- the emulation itself


def test_rounding_is_that_of_torch(driver) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    random = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
    values = [random.to(torch.int32).view(torch.float32)]
    for dtype in (torch.bfloat16, torch.float16):
        halves = every.view(dtype).float()
        near = [halves.view(torch.int32) + step for step in (-1, 0, 1)]
        ties = halves.view(torch.int32) + (1 << (15 if dtype is torch.bfloat16 else 12))
        values += [part.view(torch.float32) for part in (*near, ties, ties - 1, ties + 1)]
        spacing = torch.tensor(2.0**-25)  # ties of half's subnormals
        values.append(torch.arange(-4096, 4096) * spacing)
    given = torch.cat(values)
    for got, dtype in zip(driver.round(given), (torch.bfloat16, torch.float16), strict=True):
        wanted = given.to(dtype).float()
        assert torch.equal(got.isnan(), given.isnan())
        assert same(got[~got.isnan()], wanted[~got.isnan()])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(faults: Path, fault: str) -> None:
    done = [
        subprocess.run([str(faults), fault, str(seed)], capture_output=True, text=True)
        for seed in range(8)
    ]
    right = [run.returncode == 0 and run.stdout == "2080\n" for run in done]
    if fault == "none":
        assert all(right), done
    elif fault in ("no_barrier", "no_warp_barrier"):
        assert not all(right)
    else:
        assert not any(right)
        reports = ("emulation:", "AddressSanitizer", "runtime error", "invalid configuration")
        assert all(any(report in run.stderr for report in reports) for run in done), done


# --- the kernels against the definition


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_conformance(driver, dtype: torch.dtype, device: str) -> None:
    cases = list(testing.cases([dtype], WIDTHS, ROWS))
    for case, result in zip(cases, run(driver, cases, **DEVICES[device]), strict=True):
        case.check(result.stream, result.normed)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_all_forms_have_the_same_bits(driver, dtype: torch.dtype) -> None:
    """With and without x, norm and steering, in place, and with a table that has no room for programs."""
    cases = list(testing.cases([dtype], WIDTHS, ROWS))[1::3]  # a third: every width, every family
    wanted = run(driver, cases)
    forms = {
        "no x": [call_of(case, residual=case.h, x=None) for case in cases],
        "no norm": [call_of(case, weight=None) for case in cases],
        "neither": [call_of(case, residual=case.h, x=None, weight=None) for case in cases],
        "in place": [call_of(case, in_place=True) for case in cases],
    }
    for name, calls in forms.items():
        for case, got, full in zip(cases, driver.run(calls, **FEW), wanted, strict=True):
            assert same(got.stream, full.stream), f"{case.id}, {name}"
            assert got.normed is None or same(got.normed, full.normed), f"{case.id}, {name}"

    without = [replace(case, steering=without_reads(case.steering)) for case in cases]
    room = [replace(case, steering=without_reads(case.steering, room=True)) for case in cases]
    for case, got, full in zip(without, run(driver, without), run(driver, room), strict=True):
        case.check(got.stream, got.normed)
        assert same(got.stream, full.stream), case.id
        assert same(got.normed, full.normed), case.id

    plain = driver.run([call_of(case, steering=None) for case in cases], **FEW)
    nobody = [replace(case, steering=unsteered(case.steering)) for case in cases]
    for case, got, full in zip(nobody, run(driver, nobody), plain, strict=True):
        case.check(got.stream, got.normed)
        assert same(got.stream, full.stream), case.id
        assert same(got.normed, full.normed), case.id


# But for the one about batches, which the next test takes with fewer runs of the driver.
@pytest.mark.parametrize(
    "law", [law for law in testing.EXACT_LAWS if law != "rows_are_independent"]
)
def test_exact_laws(driver, law: str) -> None:
    for dtype, width in ((torch.float32, 100), (torch.bfloat16, 72), (torch.float16, 64)):
        testing.EXACT_LAWS[law](emulated.Ops(driver, **FEW), dtype, width)


# --- numbers at the edge, as docs/operators.md has them: no sum is taken again
HELD = (1e-17, 1.0, 8e18)  # together still below 1.8e19
FAR_LAWS = {
    "finishes_reach_far": {"lengths": HELD},
    "lengths_reach_far": {"lengths": HELD},
    "turns_reach_far": {},
    "not_finite_is_the_same": {"finishes": ("none",)},
    "norms_are_the_models": {},
}


@pytest.mark.parametrize("law", testing.FAR_LAWS)
def test_far_laws_within_the_limit(driver, law: str) -> None:
    for dtype, width in ((torch.float32, 100), (torch.bfloat16, 72), (torch.float16, 64)):
        testing.FAR_LAWS[law](emulated.Ops(driver, **FEW), dtype, width, **FAR_LAWS[law])


# |h|, |delta|, then what a finish makes of the row: one square leaves float32, or both do.
BEYOND = {
    "y too long": (1.0, 2e19, lambda h, y: torch.zeros_like(y)),
    "both too long": (2e19, 2e19, lambda h, y: torch.full_like(y, torch.nan)),
    "h too short": (1e-23, 1.0, lambda h, y: torch.zeros_like(y)),
    "both too short": (1e-23, 1e-23, lambda h, y: y),
}


@pytest.mark.parametrize("finish", ["preserve", "shrink"])
@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("room", [False, True], ids=["without programs", "with"])
def test_a_finish_beyond_the_limit(driver, name: str, finish: str, room: bool) -> None:
    of_h, of_delta, made = BEYOND[name]
    table = testing.Table(72)
    axes = torch.eye(72)
    h, delta = of_h * (axes[:1] + axes[1:2]), of_delta * (axes[0] + axes[2])
    if room:
        table.program([Read(Op.KEY, table.row(axes[0]), -1)])
    steering = table.steering(torch.tensor([table.slot(delta, (), finish)]), torch.ones(1))
    found = emulated.Ops(driver, **FEW).steer(h, steering)
    wanted = made(h, h + delta)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_batch(driver, dtype: torch.dtype) -> None:
    case = case_of(dtype, 64, 600)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    batches = [torch.arange(count) for count in (600, 1, 2, 7, 255, 256, 257)] + [order]

    def part(rows: torch.Tensor):
        steering = case.steering
        steering = steering._replace(
            row_slot=steering.row_slot[rows], row_gain=steering.row_gain[rows]
        )
        return call_of(case, residual=case.residual[rows], x=case.x[rows], steering=steering)

    whole, *others = driver.run([part(rows) for rows in batches], **DEVICES["no overlap"])
    case.check(whole.stream, whole.normed)
    for rows, result in zip(batches[1:], others, strict=True):
        assert same(result.stream, whole.stream[rows])
        assert same(result.normed, whole.normed[rows])
    other = driver.run([part(batches[0])], **DEVICES["many blocks"])[0]
    assert same(other.stream, whole.stream)
    assert same(other.normed, whole.normed)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_the_order_of_threads_does_not_matter(driver, dtype: torch.dtype) -> None:
    cases = [case_of(dtype, width, 5) for width in (100, 576, 1032)]
    wanted = driver.run([call_of(case) for case in cases])
    for seed in range(1, 6):
        for got, result in zip(
            driver.run([call_of(case) for case in cases], seed=seed), wanted, strict=True
        ):
            assert same(got.stream, result.stream)
            assert same(got.normed, result.normed)


def layouts(width: int, size: int):
    """Strides and byte offsets: vectors of 16 bytes everywhere, and one thing at a time in the way of that."""
    far = -(-width // 16) * 16 + 32
    yield {name: Layout(far) for name in ("x", "residual", "stream", "normed")}
    yield {"x": Layout(far), "residual": Layout(2 * far), "stream": Layout(3 * far)}
    yield {"x": Layout(0)}
    for name in ("x", "residual", "stream", "normed"):
        yield {name: Layout(width + 1)}
        yield {name: Layout(offset=size)}
    yield {"weight": Layout(offset=size)}
    yield {"bank": Layout(offset=4)}
    yield {"records": Layout(offset=4)}
    yield {name: Layout(width + 3, offset=size) for name in ("x", "residual", "stream", "normed")}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("width", [64, 33])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_layout_does_not_matter(driver, dtype: torch.dtype, width: int, in_place: bool) -> None:
    case = case_of(dtype, width, 5)
    calls, wanted_calls = [], []
    for layout in layouts(width, dtype.itemsize):
        x = case.x
        if layout.get("x", Layout()).stride == 0:
            if in_place:
                continue
            x = x[:1].expand(5, width)
        wanted_calls.append(call_of(case, x=x))
        calls.append(call_of(case, x=x, layouts=layout, in_place=in_place))
    results = driver.run(calls + wanted_calls, multiprocessors=1)
    for got, wanted in zip(results[: len(calls)], results[len(calls) :], strict=True):
        assert same(got.stream, wanted.stream)
        assert same(got.normed, wanted.normed)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("width", [64, 33, 1032, 8200])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_halves(driver, dtype: torch.dtype, width: int, reads: bool) -> None:
    """In registers, in shared memory, by rereading: steered rows become (0, stream), others keep both halves."""
    case = case_of(dtype, width, 5)
    steering = case.steering if reads else without_reads(case.steering)
    whole, halves = driver.run(
        [
            call_of(case, weight=None, steering=steering),
            call_of(case, weight=None, steering=steering, in_place=True, halves=True),
        ],
        **FEW,
    )
    active = reference.active_rows(steering)
    assert same(halves.stream[active], whole.stream[active])
    assert not halves.emptied[active].any()
    assert same(halves.stream[~active], case.residual[~active])
    assert same(halves.emptied[~active], case.x[~active])


@pytest.mark.parametrize("width", [64, 33])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_offsets_beyond_two_to_the_31(driver, dtype: torch.dtype, width: int) -> None:
    """Rows 2^30 elements apart, deltas where a large bank has them. What lies between is not there at all."""
    case = case_of(dtype, width, 5)
    bank = case.steering.bank
    far = [2**31 // width + 3 * row + 1 for row in range(len(bank))]
    moved = torch.tensor([*far, -1], dtype=torch.int32)
    records, reads = case.steering.records.clone(), case.steering.reads.clone()
    records[:, 0] = moved[records[:, 0]]
    reads[..., 1:3] = moved[reads[..., 1:3]]
    wide = {name: Layout(2**30) for name in ("x", "residual", "stream", "normed")}
    wide["bank"] = Layout(places=[row * width for row in far])
    steering = case.steering._replace(records=records, reads=reads)
    near, got = driver.run([call_of(case), call_of(case, steering=steering, layouts=wide)])
    assert same(got.stream, near.stream)
    assert same(got.normed, near.normed)


# --- all kernels, and every barrier in them


@pytest.fixture(scope="module")
def every_kernel(driver):
    """Cases that together launch all kernels, and their results: narrow and wide rows, aligned or not, with
    reads and with deltas only, both types of weights. FEW has blocks that work on several rows."""
    cases = []
    for dtype in testing.DTYPES:
        for width in (64, 33, 4096, 8192, 8208):
            case = case_of(dtype, width, 3)
            for weight in {dtype, torch.float32}:
                weight = case.weight.to(weight)
                cases.append(replace(case, weight=weight))
                cases.append(replace(case, weight=weight, steering=without_reads(case.steering)))
    return cases, run(driver, cases)


def in_the_driver(driver) -> set[str]:
    """The kernels that launch_rows was compiled for: all that there are."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm to list the driver's functions")
    listed = subprocess.run(["nm", "-C", driver.path], capture_output=True, text=True, check=True)
    launching = [line for line in listed.stdout.splitlines() if "launch_rows<" in line]
    return {emulated.kernel_in(line) for line in launching}


def in_the_library() -> set[str] | None:
    """Those in ptxas's reports of the last build, if that was of today's sources."""
    with FileLock(builder.ROOT / "build/ninja.lock"):  # test_cuda_build.py may be building
        logs = list((builder.ROOT / "build/ninja").glob("*.cu.o.log"))
        sources = [path for path in builder.CSRC.glob("*.*") if path.suffix != ".cpp"]
        newest = max(path.stat().st_mtime for path in sources)
        old = not logs or min(log.stat().st_mtime for log in logs) < newest
        reports = "".join(log.read_text() for log in logs)
    if old or not shutil.which("c++filt"):
        return None
    names = re.findall(r"Compiling entry function '(\w+)'", reports)
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return {emulated.kernel_in(name) for name in done.stdout.splitlines()}


def test_every_kernel_has_run(driver, every_kernel) -> None:
    cases, results = every_kernel
    for case, result in zip(cases, results, strict=True):
        case.check(result.stream, result.normed)
    launches = [launch for result in results for launch in result.launches]
    assert all(launch.overlap and launch.blocks == 2 for launch in launches)
    assert {launch.kernel for launch in launches} == in_the_driver(driver)
    assert in_the_library() in (None, in_the_driver(driver))


def test_without_shared_memory_the_bits_are_the_same(driver, every_kernel) -> None:
    """Wide rows that are aligned, read again and again, where a device has no room to keep them."""
    cases, wanted = every_kernel
    results = run(driver, cases, **FEW, shared=8)
    assert not any("shared" in launch.kernel for got in results for launch in got.launches)
    for case, got, full in zip(cases, results, wanted, strict=True):
        assert same(got.stream, full.stream), case.id
        assert same(got.normed, full.normed), case.id


@pytest.mark.parametrize(("name", "number"), BARRIERS)
def test_no_barrier_can_be_missing(every_kernel, tmp_path: Path, name: str, number: int) -> None:
    """Without it some order of threads gives other bits, or the emulation reports an error."""
    cases, wanted = every_kernel
    csrc = tmp_path / "csrc"
    shutil.copytree(builder.CSRC, csrc)
    text = (csrc / name).read_text()
    begin, end = list(BARRIER.finditer(text))[number].span(1)
    (csrc / name).write_text(f"{text[:begin]};{text[end:]}")
    mutant = emulated.build(csrc)
    for seed in range(5):
        results, _ = mutant.try_run([call_of(case) for case in cases], seed=seed, **FEW)
        if results is None or not all(
            same(got.stream, full.stream) and same(got.normed, full.normed)
            for got, full in zip(results, wanted, strict=True)
        ):
            return
    pytest.fail(f"{name} is as good without {text[begin:end]!r}")
