"""The Triton kernel, twice: interpreted against the reference, and compiled without a GPU.

TRITON_INTERPRET is read while triton is imported, and changes every kernel of a process. So the
interpreted tests have a process of their own: ``test_interpreted`` runs this file again, where
``TestInterpreted`` is collected in place of ``TestCompiled``. float32 and float16 only: the interpreter
truncates where a bfloat16 store rounds.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerfast import reference, triton_ops
from steerfast.reference import FINISH_CODES, Steering

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the triton package is not installed"
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parents[1]
EPS = 1e-5
OPS = (
    "add_rms_norm",
    "add_rms_norm_",
    "steer_add_rms_norm",
    "steer_add_rms_norm_",
    "steer_rms_norm",
    "steer_add",
    "steer",
)

# name: (steered at all, gain, finish, delta as a function of the row's h). The deltas that depend on h
# make |y| smaller than |h|, and zero.
KINDS = {
    "slot -1": (False, 0.7, "none", torch.randn_like),
    "gain 0": (True, 0.0, "preserve", torch.randn_like),
    "no active term": (True, 0.7, "shrink", None),
    "none": (True, 0.7, "none", torch.randn_like),
    "preserve": (True, -1.3, "preserve", torch.randn_like),
    "shrink, longer": (True, 0.7, "shrink", lambda h: 5 * torch.randn_like(h)),
    "shrink, shorter": (True, 1.0, "shrink", lambda h: -0.3 * h),
    "preserve, y = 0": (True, 1.0, "preserve", lambda h: -h),
}
INACTIVE = ("slot -1", "gain 0", "no active term")
WITHOUT_FINISH = (*INACTIVE, "none")
# Every kind alone, and batches of five that mix them.
BATCHES = [(kind,) for kind in KINDS] + [tuple(KINDS)[:5], tuple(KINDS)[3:]]


def steering_of(h: Tensor, kinds: tuple[str, ...]) -> Steering:
    """Row n steered as kinds[n] says; neither its slot nor its delta row is n."""
    N, D = h.shape
    row_slot = torch.arange(N, 0, -1, dtype=torch.int32)
    row_gain, records = torch.empty(N), torch.full((N + 1, 4), 7, dtype=torch.int32)
    records[0, 0] = 0  # nobody's, and its delta is NaN: what a row in slot -1 must not take
    bank = torch.full((2 * N, D), float("nan"))
    for n, kind in enumerate(kinds):
        steered, gain, finish, delta = KINDS[kind]
        slot = N - n
        records[slot, 0] = -1 if delta is None else 2 * n + 1
        records[slot, 1] = FINISH_CODES[finish]
        row_gain[n] = gain
        if not steered:
            row_slot[n] = -1
        if delta is not None:
            bank[2 * n + 1] = delta(h[n].float())
    return Steering(row_slot, row_gain, records, bank)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from |value| rounded to dtype to the next number above; value is float64."""
    near = value.abs().to(dtype)
    return torch.nextafter(near, torch.tensor(float("inf"), dtype=dtype)).double() - near.double()


def rows(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D).to(dtype), (3 * torch.randn(N, D)).to(dtype)


def assert_stream(stream: Tensor, h: Tensor, steering: Steering, kinds: tuple[str, ...]) -> None:
    """The tolerance of DESIGN.md section 3 against float64 for every row; tighter where bits must agree.

    Kernel and reference round the same float32 operations in the same order, so without a finish they
    agree bit for bit. With one, their factors may differ by the order of summation: a few units of
    2^-24, relative, which moves a float16 result by at most 1 ulp, the final rounding. float32 shows
    it in full, hence the second term; it also covers gain * delta rounded where h + gain * delta cancels.
    """
    expected = reference.steer_rows(h, steering).to(h.dtype)
    for n, kind in enumerate(kinds):
        if kind in INACTIVE:
            assert_same_bits(stream[n], h[n])
        elif kind in WITHOUT_FINISH:
            assert_same_bits(stream[n], expected[n])
    exact = reference.steer_rows(h, steering, torch.float64)
    contribution = torch.where(
        exact != h.double(), steering.row_gain[:, None] * steering.bank[1::2], 0.0
    )
    terms = h.double().abs() + contribution.double().abs()
    bound = ulp(exact, h.dtype) + 2**-20 * terms
    error = (stream.double() - exact).abs()
    assert (error <= bound).all(), (error / bound).max()


def assert_norm(normed: Tensor, stream: Tensor, weight: Tensor) -> None:
    """From equal streams only the order of summation differs: rstd in its last bits.

    In float16 that seldom crosses a rounding boundary of round_T(stream * rstd), and then moves it by
    1 ulp and the weighted result by 2 at most; normalising the unrounded sum, or rounding once
    instead of twice, would change a quarter of all elements. float32 shows rstd's bits themselves.
    """
    expected = reference.rms_norm(stream, weight, EPS)
    assert normed.dtype == expected.dtype
    error = (normed.double() - expected.double()).abs()
    assert (error <= 2 * ulp(expected.double(), stream.dtype) + 2**-22 * expected.abs()).all()
    if stream.dtype == torch.float16:
        assert (error > 0).sum() <= 0.01 * error.numel()


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    assert a.dtype == b.dtype
    assert torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout


def test_import_does_not_import_triton() -> None:
    code = "import sys, steerfast.triton_ops; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", OPS)
def test_signature_is_the_references(name: str) -> None:
    assert inspect.signature(getattr(triton_ops, name)) == inspect.signature(
        getattr(reference, name)
    )


# Where |y| = 0 the kernel divides and then takes 1 instead; numpy says so.
@pytest.mark.filterwarnings("ignore:divide by zero")
class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("D", [7, 64, 100, 576])
    @pytest.mark.parametrize("kinds", BATCHES, ids=", ".join)
    def test_stream_and_norm(self, kinds: tuple[str, ...], D: int, dtype: torch.dtype) -> None:
        x, residual = rows(len(kinds), D, dtype)
        weight = 1 + 0.1 * torch.randn(D)
        h = residual + x
        steering = steering_of(h, kinds)
        for w in (weight.to(dtype), weight):
            stream, normed = triton_ops.steer_add_rms_norm(x, residual, w, EPS, steering)
            assert_stream(stream, h, steering, kinds)
            assert_norm(normed, stream, w)
            from_h = triton_ops.steer_rms_norm(h, w, EPS, steering)
            assert_same_bits(from_h[0], stream)
            assert_same_bits(from_h[1], normed)
            if w.dtype == dtype:
                in_place = x.clone(), residual.clone()
                triton_ops.steer_add_rms_norm_(*in_place, w, EPS, steering)
                assert_same_bits(in_place[0], normed)
                assert_same_bits(in_place[1], stream)
        assert_same_bits(triton_ops.steer_add(x, residual, steering), stream)
        assert_same_bits(triton_ops.steer(h, steering), stream)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("D", [7, 576])
    def test_unsteered(self, D: int, dtype: torch.dtype) -> None:
        x, residual = rows(5, D, dtype)
        weight = (1 + 0.1 * torch.randn(D)).to(dtype)
        stream, normed = triton_ops.add_rms_norm(x, residual, weight, EPS)
        assert_same_bits(stream, residual + x)
        assert_norm(normed, stream, weight)
        triton_ops.add_rms_norm_(x, residual, weight, EPS)
        assert_same_bits(residual, stream)
        assert_same_bits(x, normed)

    def test_inactive_rows_keep_odd_bits(self) -> None:
        """-0, subnormals, infinities and NaN, beside a delta and with gains that are not finite."""
        kinds = INACTIVE
        odd = torch.tensor([-0.0, 6e-8, -float("inf"), float("nan")], dtype=torch.float16)
        h = odd.repeat(len(kinds), 2)
        steering = steering_of(h, kinds)
        steering.row_gain[0] = steering.row_gain[2] = float("inf")
        assert_same_bits(triton_ops.steer(h, steering), h)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_strided_rows_and_nothing_beside_them(self, dtype: torch.dtype) -> None:
        """Rows inside wider ones, in and out of place; the padding survives."""
        kinds, D = BATCHES[-1], 100
        x, residual = rows(5, D, dtype)
        weight = torch.ones(D, dtype=dtype)
        steering = steering_of(residual + x, kinds)
        expected = triton_ops.steer_add_rms_norm(x, residual, weight, EPS, steering)
        wide_x, wide_residual = (
            torch.full((5, D + 3), 9.0, dtype=dtype),
            torch.full((5, 2 * D), 9.0, dtype=dtype),
        )
        inner_x, inner_residual = wide_x[:, 2:-1], wide_residual[:, :D]
        inner_x.copy_(x)
        inner_residual.copy_(residual)
        found = triton_ops.steer_add_rms_norm(inner_x, inner_residual, weight, EPS, steering)
        triton_ops.steer_add_rms_norm_(inner_x, inner_residual, weight, EPS, steering)
        for stream, normed in (found, (inner_residual, inner_x)):
            assert_same_bits(stream, expected[0])
            assert_same_bits(normed, expected[1])
        assert (wide_x[:, :2] == 9).all()
        assert (wide_x[:, -1] == 9).all()
        assert (wide_residual[:, D:] == 9).all()

    def test_any_shape(self) -> None:
        """[D], [1, 5, D] and a layout without rows at one stride, which is copied."""
        x, residual = rows(6, 64, torch.float16)
        weight = torch.ones(64, dtype=torch.float16)
        kinds = ("none",) * 6
        steering = steering_of(residual + x, kinds)
        stream, normed = triton_ops.steer_add_rms_norm(x, residual, weight, EPS, steering)
        across = residual.view(3, 2, 64).transpose(0, 1).contiguous().transpose(0, 1)
        columns = x.t().contiguous().t().view(3, 2, 64)
        found = triton_ops.steer_add_rms_norm(columns, across, weight, EPS, steering)
        assert found[0].shape == found[1].shape == (3, 2, 64)
        assert found[0].is_contiguous()
        assert_same_bits(found[0].view(6, 64), stream)
        assert_same_bits(found[1].view(6, 64), normed)
        one = triton_ops.add_rms_norm(x[0], residual[0], weight, EPS)
        assert_same_bits(one[0], residual[0] + x[0])

    @pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (3, 0)])
    def test_nothing_to_do(self, shape: tuple[int, ...]) -> None:
        x, count, D = torch.empty(shape), torch.Size(shape[:-1]).numel(), shape[-1]
        steering = Steering(
            torch.zeros(count, dtype=torch.int32),
            torch.ones(count),
            torch.zeros(1, 4, dtype=torch.int32),
            torch.zeros(1, D),
        )
        stream, normed = triton_ops.steer_add_rms_norm(x, x, torch.ones(D), EPS, steering)
        assert stream.shape == normed.shape == shape
        triton_ops.steer_add_rms_norm_(x, x.clone(), torch.ones(D), EPS, steering)

    def test_arguments_that_do_not_fit(self) -> None:
        x, residual = rows(2, 64, torch.float16)
        weight = torch.ones(64, dtype=torch.float16)
        good = steering_of(residual + x, ("none", "none"))
        bad = {
            "row_slot": good.row_slot.long(),
            "row_gain": good.row_gain[:1],
            "records": good.records.repeat(1, 2)[:, :4],
            "bank": good.bank[:, 1:],
        }
        for name, value in bad.items():
            with pytest.raises(RuntimeError, match=name):
                triton_ops.steer_add(x, residual, good._replace(**{name: value}))
        with pytest.raises(RuntimeError, match="x must look like residual"):
            triton_ops.steer_add(x[:1], residual, good)
        with pytest.raises(RuntimeError, match="weight must be"):
            triton_ops.add_rms_norm(x, residual, weight[1:], EPS)
        with pytest.raises(RuntimeError, match="dtype of the stream"):
            triton_ops.add_rms_norm_(x, residual, weight.float(), EPS)
        with pytest.raises(RuntimeError, match="contiguous"):
            triton_ops.add_rms_norm_(x.t().contiguous().t(), residual, weight, EPS)


class TestCompiled:
    """What ptxas made of the kernel with everything switched on, for machines that are not here."""

    __test__ = not INTERPRETED

    @pytest.mark.parametrize(
        ("dtype", "weight"), [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")]
    )
    @pytest.mark.parametrize("D", [576, 4096, 8192])
    @pytest.mark.parametrize("capability", [80, 90, 100])
    def test_no_spills(self, capability: int, D: int, dtype: str, weight: str) -> None:
        from steerfast.kernels.steer_add_rms_norm import Config

        config = Config.for_width(D)
        ptx, usage = compiled(capability, D, dtype, weight, config.options)
        told = f"sm_{capability} D={D} {dtype}/{weight} num_warps={config.num_warps}: {usage}"
        assert not spilled(usage), told
        # 80 registers let three blocks of 256 threads share a multiprocessor's 65536.
        assert usage["REG"] <= 80, told
        accesses = re.findall(r"(?:ld|st)\.global\.\S+", ptx)
        assert "ld.global.v4.b32" in accesses, told
        assert "st.global.v4.b32" in accesses, told
        # Nothing fused, nothing approximate. (sm_80 adds and multiplies bf16 by fma.rn.bf16, exactly.)
        assert "fma.rn.f32" not in ptx
        assert not re.search(r"\.approx|\.ftz|div\.full", ptx)

    @pytest.mark.parametrize("absent", ["X", "NORM", "STEERING", "X, NORM"])
    def test_every_form_compiles(self, absent: str) -> None:
        from steerfast.kernels.steer_add_rms_norm import Config

        options = Config.for_width(576).options
        _, usage = compiled(90, 576, "bf16", "bf16", options, absent.split(", "))
        assert not spilled(usage), usage

    def test_the_gauge_sees_spills(self) -> None:
        _, usage = compiled(
            90, 4096, "bf16", "bf16", {"num_warps": 8, "enable_fp_fusion": False, "maxnreg": 24}
        )
        assert spilled(usage), usage

    def test_fusion_would_be_seen(self) -> None:
        ptx, _ = compiled(90, 4096, "fp32", "fp32", {"num_warps": 8, "enable_fp_fusion": True})
        assert "fma.rn.f32" in ptx

    def test_every_lane_has_its_own_elements(self) -> None:
        """In place, an element held by two warps could be read by one after the other has written it."""
        from steerfast.kernels.steer_add_rms_norm import Config

        for D in range(1, 20000):
            config = Config.for_width(D)
            assert config.BLOCK_D >= D
            assert config.num_warps == 1 or 32 * config.num_warps <= config.BLOCK_D


def spilled(usage: dict[str, int]) -> bool:
    """Eight bytes of frame are no spill: the ptxas of triton 3.7.1 reserves them in one sm_100 form that
    uses 56 of the 255 registers it could have."""
    return usage["STACK"] > 8 or usage["LOCAL"] > 0


# The pointers that a launch passes as None.
PARTS = {
    "X": ("x_ptr",),
    "NORM": ("weight_ptr", "normed_ptr"),
    "STEERING": ("row_slot_ptr", "row_gain_ptr", "records_ptr", "bank_ptr"),
}


def compiled(
    capability: int,
    D: int,
    dtype: str,
    weight: str,
    options: dict[str, int | bool],
    absent: Sequence[str] = (),
) -> tuple[str, dict[str, int]]:
    """The PTX, and the resources of the cubin that ptxas built from it: REG, STACK, SHARED, LOCAL."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from steerfast.kernels.steer_add_rms_norm import Config, steer_add_rms_norm_kernel

    constants = {"D": D, "BLOCK_D": Config.for_width(D).BLOCK_D}
    constants |= {f"HAS_{part}": part not in absent for part in PARTS}
    constants |= {name: None for part in absent for name in PARTS[part]}
    pointers = dict.fromkeys(("x_ptr", "residual_ptr", "stream_ptr"), dtype)
    pointers |= {"weight_ptr": weight, "normed_ptr": weight, "bank_ptr": "fp32"}
    pointers |= {"row_slot_ptr": "i32", "row_gain_ptr": "fp32", "records_ptr": "i32"}
    signature, attributes = {}, {}
    for i, name in enumerate(steer_add_rms_norm_kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
        # What a launch finds out by itself: allocations, and strides of these widths, divide by 16.
        if signature[name][0] == "*" or (name.endswith("_stride") and name != "records_stride"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(steer_add_rms_norm_kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}
    assert set(usage) == {"REG", "STACK", "SHARED", "LOCAL"}, told
    return kernel.asm["ptx"], usage
