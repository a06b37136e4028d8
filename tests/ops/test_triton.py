"""The Triton kernel, twice: interpreted against the reference, and compiled without a GPU.

TRITON_INTERPRET is read while triton is imported, and changes every kernel of a process. So the
interpreted tests have a process of their own: ``test_interpreted`` runs this file again, where
``TestInterpreted`` is collected in place of ``TestCompiled``. float32 and float16 only: the interpreter
truncates where a bfloat16 store rounds. The laws of ``steerfast.testing`` are in test_conformance.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton_interpreter
from torch import Tensor

from steerfast import testing
from steerfast.ops import reference
from steerfast.ops import triton as triton_ops
from steerfast.ops.records import FINISH_CODES, MAX_READS, READ_WIDTH, GateKind, Op, Steering
from steerfast.testing import recipes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the triton package is not installed"
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parents[2]
EPS = 1e-5

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
# Every kind alone, and a batch of all.
BATCHES = [(kind,) for kind in KINDS] + [tuple(KINDS)]


def steering_of(h: Tensor, kinds: tuple[str, ...], programs: int = 0) -> Steering:
    """Row n steered by a delta as kinds[n] says; neither its slot nor its delta row is n."""
    N, D = h.shape
    row_slot = torch.arange(N, 0, -1, dtype=torch.int32)
    row_gain, records = torch.empty(N), torch.full((N + 1, 4), 7, dtype=torch.int32)
    records[0] = 0  # nobody's, and its delta is NaN: what a row in slot -1 must not take
    bank = torch.full((2 * N, D), float("nan"))
    for n, kind in enumerate(kinds):
        steered, gain, finish, delta = KINDS[kind]
        slot = N - n
        records[slot, 0] = -1 if delta is None else 2 * n + 1
        records[slot, 1] = FINISH_CODES[finish]
        records[slot, 3] = 0
        row_gain[n] = gain
        if not steered:
            row_slot[n] = -1
        if delta is not None:
            bank[2 * n + 1] = delta(h[n].float())
    reads = torch.full((programs, MAX_READS, READ_WIDTH), -1, dtype=torch.int32)
    return Steering(row_slot, row_gain, records, reads, bank)


def rows(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D).to(dtype), (3 * torch.randn(N, D)).to(dtype)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert torch.equal(testing.bits(a), testing.bits(b))


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.skipif(bool(triton_interpreter.missing()), reason=str(triton_interpreter.missing()))
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout


def test_import_does_not_import_triton() -> None:
    code = "import sys, steerfast.ops.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# What the kernel computes and does not use: 0 / 0, and the exponential of a closed sigmoid.
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow")
class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        ("D", "dtype"), [(1, torch.float32), (33, torch.float16), (257, torch.float32)]
    )
    def test_cases(self, D: int, dtype: torch.dtype) -> None:
        """Every family at widths beside those of test_conformance.py."""
        for case in testing.cases([dtype], [D], [6], seed=1, quick=True):
            stream, normed = triton_ops.steer_add_rms_norm(*case.arguments)
            case.check(stream, normed)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("programs", [0, 1], ids=["additive", "with reads"])
    @pytest.mark.parametrize("kinds", BATCHES, ids=", ".join)
    def test_deltas(self, kinds: tuple[str, ...], programs: int, dtype: torch.dtype) -> None:
        """Kernel and reference round the same float32 operations in the same order, so that without a
        finish they agree bit for bit, whether or not the table has room for programs."""
        x, residual = rows(len(kinds), 100, dtype)
        h = residual + x
        steering = steering_of(h, kinds, programs)
        expected = reference.steer(h, steering)
        stream = triton_ops.steer_add(x, residual, steering)
        weight = torch.ones(100)
        case = testing.Case(", ".join(kinds), x, residual, weight, EPS, steering)
        case.check(stream)
        for n, kind in enumerate(kinds):
            if kind in INACTIVE:
                assert_same_bits(stream[n], h[n])
            elif kind in WITHOUT_FINISH:
                assert_same_bits(stream[n], expected[n])

    def test_rows_do_not_depend_on_their_batch(self) -> None:
        """The first N rows of 600, with N on both sides of where other kernels change their ways."""
        x, residual = rows(600, 7, torch.float16)
        table = testing.Table(7)
        v, b = (table.row(torch.nn.functional.normalize(torch.randn(7), dim=0)) for _ in "vb")
        table.slot(torch.randn(7), (), "preserve")
        table.slot(None, recipes.rotate_to(v, b, 0.7), "shrink")
        table.slot(torch.randn(7), recipes.slerp(v, 0.3))
        weight = torch.ones(7, dtype=torch.float16)
        whole = None
        for N in (600, 257, 256, 255, 7, 2, 1):
            slots = torch.arange(N) % 16  # the most in none, which is quickly interpreted
            slots = torch.where((slots >= 1) & (slots <= 3), slots, -1)
            steering = table.steering(slots, torch.full((N,), 0.7))
            pair = triton_ops.steer_add_rms_norm(x[:N], residual[:N], weight, EPS, steering)
            whole = whole or pair
            assert_same_bits(pair[0], whole[0][:N])
            assert_same_bits(pair[1], whole[1][:N])

    def test_every_op_and_gate(self) -> None:
        """One read of each pair, whose key is its own dot, beside one that reads and writes nothing."""
        x, residual = rows(1, 33, torch.float32)
        h = residual + x
        table = testing.Table(33)
        v, w, b = (table.row(torch.nn.functional.normalize(torch.randn(33), dim=0)) for _ in "vwb")
        nothing = recipes.Read(Op.RELATIVE, -1, -1, slope=3.0)
        for op in Op:
            for gate in GateKind:
                for sign in (-1.0, 1.0):
                    numbers = {"slope": 0.6 * sign, "cross": 0.4, "offset": 2.0 * sign}
                    numbers |= {"level": 1.5, "threshold": 0.25, "bias": 0.1 * sign}
                    read = recipes.Read(op, v, b, 1, gate, 0, **numbers)
                    partner = recipes.Read(Op.KEY, w)
                    table.slot(None, [read, partner, nothing])
        count = len(table.slots)
        x, residual = x.expand(count, -1), residual.expand(count, -1)
        steering = table.steering(torch.tensor(table.slots), torch.full((count,), -0.8))
        case = testing.Case("pairs", x, residual, torch.ones(33), EPS, steering)
        assert testing.bounds.analyse(h.expand(count, -1), steering).clear.all()
        case.check(triton_ops.steer_add(x, residual, steering))

    def test_slerp_beside_its_axis(self) -> None:
        """Towards the axis and away from it, by little and by much: the coefficients are right to float32.

        Away from it 1 / sin w magnifies the row, and what float32 loses there is relative to that.
        """
        torch.manual_seed(0)
        axis, across = torch.linalg.qr(torch.randn(16, 2).double())[0].T
        axis = axis.float()
        sides = [0.001, 0.03, 1.0, math.pi / 2]
        angles = sides + [math.pi - side for side in sides[::-1]]
        table, steps = testing.Table(16), (1e-6, 1e-3, 0.25, 0.5, 1.0, 1.7, -0.4)
        row = table.row(axis)
        for t in steps:
            table.slot(None, recipes.slerp(row, t))
        w = torch.tensor(angles).double()[:, None]
        h = (8 * (w.cos() * axis + w.sin() * across)).float().repeat_interleave(len(steps), 0)
        slots = torch.tensor(table.slots).repeat(len(angles))
        steering = table.steering(slots, torch.ones(len(slots)))
        exact = reference.steer_rows(h, steering, torch.float64)
        out = triton_ops.steer(h, steering).double()
        norm, p = h.double().norm(dim=-1), h.double() @ axis.double()
        sine = (1 - (p / norm) ** 2).sqrt()
        assert sine.min() > 5e-4
        t = torch.tensor(steps).double().repeat(len(angles))
        # A small step has small coefficients.
        bound = 2.0**-21 * (1 + 1 / sine) * norm * t.abs().clamp(max=1.0)
        bound = bound[:, None] + testing.ulp(exact, torch.float32)
        error = (out - exact).abs()
        assert (out != h).any(-1)[t.abs() > 1e-3].all()
        assert (error <= bound).all(), (error / bound).max()

    def test_nan_is_not_clamped_away(self) -> None:
        """A NaN of h reaches all that its dots write, floors and ceilings too, as in the reference."""
        table = testing.Table(16)
        v, w = (table.row(torch.randn(16)) for _ in "vw")
        for recipe in (recipes.floor, recipes.ceiling, recipes.clamp):
            table.slot(None, [recipes.replace(recipe(v, 1.0)[0], target=w)])
        h = torch.randn(3, 16)
        h[:, 5] = torch.nan
        steering = table.steering(torch.tensor(table.slots), torch.ones(3))
        assert reference.steer(h, steering).isnan().all()
        assert triton_ops.steer(h, steering).isnan().all()

    @pytest.mark.parametrize("order", ["hf", "fp32"])
    def test_rows_off_the_alignment(self, order: reference.NormOrder) -> None:
        """Views whose rows do not start where the kernel's accesses may; beside them nothing changes."""
        case = next(testing.cases([torch.float16], [64], [5]))
        x, residual, weight, eps, steering, _ = case.arguments
        expected = triton_ops.steer_add_rms_norm(x, residual, weight, eps, steering, order)
        wide = torch.full((3, 5, 70), 9.0, dtype=torch.float16)
        views = [wide[i, :, 1 + 2 * i : 65 + 2 * i] for i in range(3)]
        for view, rows_of in zip(views, (x, residual, case.h), strict=True):
            view.copy_(rows_of)
        shifted = torch.empty(65, dtype=weight.dtype)[1:].copy_(weight)
        found = triton_ops.steer_add_rms_norm(*views[:2], shifted, eps, steering, order)
        triton_ops.steer_add_rms_norm_(*views[:2], weight, eps, steering, order)
        triton_ops.steer_(views[2], steering)
        for stream, normed in (found, (views[1], views[0])):
            assert_same_bits(stream, expected[0])
            assert_same_bits(normed, expected[1])
        assert_same_bits(views[2], expected[0])
        for i in range(3):
            assert (wide[i, :, : 1 + 2 * i] == 9).all()
            assert (wide[i, :, 65 + 2 * i :] == 9).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_halves(self, dtype: torch.dtype) -> None:
        """Steered rows become a stream and nothing, in views of any alignment; the others keep both halves."""
        kinds = tuple(KINDS)
        wide = torch.full((2, len(kinds), 103), 9.0, dtype=dtype)
        x, residual = wide[0, :, 1:101], wide[1, :, 2:102]
        for view, given in zip((x, residual), rows(len(kinds), 100, dtype), strict=True):
            view.copy_(given)
        before = wide.clone()
        steering = steering_of(residual + x, kinds)
        stream = triton_ops.steer_add(x, residual, steering)
        triton_ops.steer_halves_(x, residual, steering)
        for n, kind in enumerate(kinds):
            if kind in INACTIVE:
                assert_same_bits(wide[:, n], before[:, n])
            else:
                assert_same_bits(residual[n], stream[n])
                assert not x[n].any()
        outside = torch.ones(wide.shape, dtype=torch.bool)
        outside[0, :, 1:101] = outside[1, :, 2:102] = False
        assert_same_bits(wide[outside], before[outside])

    def test_arguments_that_do_not_fit(self) -> None:
        """Each is refused in words before anything is launched."""
        kinds = ("none", "none")
        x, residual = rows(2, 64, torch.float16)
        weight = torch.ones(64, dtype=torch.float16)
        good = steering_of(residual + x, kinds, 1)
        overlapping = torch.empty(128, dtype=torch.float16).as_strided((2, 64), (32, 1))
        columns = x.t().contiguous().t()
        meta = {name: tensor.to("meta") for name, tensor in good._asdict().items()}
        refused = [
            *({"steering": good._replace(**{name: value})} for name, value in meta.items()),
            {"steering": good._replace(row_slot=good.row_slot.long())},
            {"steering": good._replace(row_slot=good.row_slot.repeat_interleave(2)[::2])},
            {"steering": good._replace(row_gain=good.row_gain[:1])},
            {"steering": good._replace(records=good.records.repeat(1, 2)[:, :4])},
            {"steering": good._replace(records=good.records[:, :2])},
            {"steering": good._replace(records=good.records[0, 0])},
            {"steering": good._replace(reads=good.reads.float())},
            {"steering": good._replace(reads=good.reads[:, :8])},
            {"steering": good._replace(reads=good.reads[0])},
            {"steering": good._replace(bank=good.bank[:, 1:])},
            {"steering": good._replace(bank=good.bank.double())},
            {"x": x[:1]},
            {"x": x.float()},
            {"x": x.to("meta")},
            {"residual": residual.double(), "x": x.double()},
            {"residual": residual[0, 0], "x": x[0, 0]},
            {"weight": weight[1:]},
            {"weight": weight.bfloat16()},
            {"weight": weight.to("meta")},
            {"weight": torch.ones(128, dtype=torch.float16)[::2]},
            {"weight": weight.float(), "in_place": True},
            {"x": columns, "in_place": True},
            {"residual": columns, "in_place": True},
            {"x": overlapping, "in_place": True},
            {"residual": overlapping, "in_place": True},
            {"residual": overlapping, "x": None, "weight": None, "in_place": True},
        ]
        for changed in refused:
            given = {"x": x, "residual": residual, "weight": weight, "steering": good}
            given |= changed
            in_place, there = given.pop("in_place", False), given["x"] is not None
            op = "steer_add_rms_norm" if there else "steer"
            names = ("x", "residual", "weight", "steering") if there else ("residual", "steering")
            arguments = [given[name] for name in names]
            if there:
                arguments.insert(3, EPS)
            op += "_" * in_place
            with pytest.raises(ValueError, match=f"^{op}: "):
                getattr(triton_ops, op)(*arguments)
        shared = x[:1].expand(2, 64)
        with pytest.raises(ValueError, match=r"^steer_halves_: x has strides .* not overlapping"):
            triton_ops.steer_halves_(shared, residual, good)
        with pytest.raises(ValueError, match="norm_order"):
            triton_ops.add_rms_norm(x, residual, weight, EPS, "vllm")
        with pytest.raises(ValueError, match="requires grad"):
            triton_ops.steer_(x.clone().requires_grad_(), good)


class TestCompiled:
    """What ptxas made of the kernel, for machines that are not here."""

    __test__ = not INTERPRETED

    def test_registers(self) -> None:
        """No form spills, for any architecture; and the committed report is what this Triton gives. Another one, from which the
        launch table was not made, may spill a value, stored and loaded once."""
        triton_registers = script("triton_registers")
        committed = triton_registers.REPORT.read_text(encoding="utf-8")
        reported = re.search(r"Triton (\S+) ships", committed).group(1)
        same = reported == triton_registers.triton.__version__
        for line in [triton_registers.line(row) for row in triton_registers.rows()]:
            spills = [int(count) for count in re.findall(r"\d+: \d+, (\d+), \d+", line)]
            assert len(spills) == 3, line
            assert max(spills) <= (0 if same else 2), line
        if not same:
            pytest.skip(f"the report is of Triton {reported}")
        assert triton_registers.report() == committed, (
            "in benchmarks/, run: python -m gpu.triton_registers"
        )

    def test_the_gauge_sees_spills(self) -> None:
        triton_registers = script("triton_registers")
        form = triton_registers.FORMS["steer_add_rms_norm, additive"]
        compiled = triton_registers.compiled("sm_90", 4096, "bf16", "bf16", form, maxnreg=24)
        assert compiled.usage.spills > 0, compiled.usage

    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    @pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
    def test_instructions(self, arch: str, dtype: str) -> None:
        """16-byte accesses; nothing fused, nothing approximate but the exponential of a sigmoid; 64-bit row
        offsets."""
        triton_registers = script("triton_registers")
        for form in triton_registers.FORMS.values():
            compiled = triton_registers.compiled(arch, 4096, dtype, dtype, form)
            ptx = compiled.ptx
            accesses = re.findall(r"(?:ld|st)\.global\S*", ptx)
            wide = {"ld.global.v4.b32", "st.global.v4.b32"}
            assert set(accesses) - {"ld.global.b32"} == wide
            # A row's slot, gain and record, and its reads; a row in scalars would take many more.
            assert accesses.count("ld.global.b32") <= 24 * ("STEERING" not in form.without)
            # sm_80 adds and multiplies bf16 by fma.rn.bf16, exactly.
            assert not re.search(r"fma\.rn\.f(32|64)", ptx)
            approximate = re.findall(r"\S*(?:\.approx|\.ftz|div\.full)\S*", ptx)
            assert approximate == ["ex2.approx.f32"] * form.with_reads
            assert not re.search(r"\b(min|max)\.f(32|64)", ptx), "NaN would be lost"
            places = re.findall(r"arith\.muli %\S+, (%\S+) : i32", compiled.ttgir)
            assert set(places) <= {"%c12_i32"}, "a 32-bit product that is not a place in a program"

    def test_fusion_would_be_seen(self) -> None:
        triton_registers = script("triton_registers")
        compiled = triton_registers.compiled("sm_90", 4096, "fp32", "fp32", enable_fp_fusion=True)
        assert "fma.rn.f32" in compiled.ptx
        assert "fma.rn.f64" in compiled.ptx

    @pytest.mark.parametrize("D", [100, 576, 1001, 4096])
    def test_all_forms_sum_in_the_same_order(self, D: int) -> None:
        """The elements of a thread are the same, so that a row gets the same bits from every op, beside
        any steering, with a weight of any dtype."""
        triton_registers = script("triton_registers")
        for dtype, weights in (("bf16", ("bf16", "fp32")), ("fp32", ("fp32",))):
            layouts = set()
            for form in triton_registers.FORMS.values():
                for weight in weights:
                    compiled = triton_registers.compiled("sm_90", D, dtype, weight, form)
                    layouts |= summed_layouts(compiled.ttgir, D)
            assert len(layouts) == 1, (D, dtype, layouts)

    def test_the_check_sees_another_order(self) -> None:
        triton_registers = script("triton_registers")
        layouts = set()
        for D in (576, 577):
            compiled = triton_registers.compiled("sm_90", D, "bf16", "bf16")
            layouts |= summed_layouts(compiled.ttgir, D)
        assert len(layouts) == 2


class TestLaunchTable:
    __test__ = not INTERPRETED

    def test_what_is_committed(self) -> None:
        """Every architecture, element size and D has an entry, and says where it comes from."""
        tune = script("tune_triton")
        table = json.loads(tune.TABLE.read_text(encoding="utf-8"))
        for arch in tune.ARCHS:
            part = table["architectures"][arch]
            assert part.pop("chosen_from").startswith(("compiler reports", "timings on"))
            for bits in ("16", "32"):
                assert set(part[bits]) == {str(D) for D in tune.WIDTHS}

    def test_the_script_chooses_what_is_committed(self) -> None:
        tune = script("tune_triton")
        table = json.loads(tune.TABLE.read_text(encoding="utf-8"))
        part = table["architectures"]["sm_90"]
        if table["triton"] != tune.triton.__version__ or part["chosen_from"] != tune.BY_COMPILER:
            pytest.skip("chosen by another Triton, or by timing")
        assert tune.by_compiler("sm_90", 4096, 16) == part["16"]["4096"]

    @pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120", "cpu"])
    @pytest.mark.parametrize("element_size", [2, 4])
    def test_every_width(self, arch: str, element_size: int) -> None:
        """One number of warps for both forms; every lane has its own elements: in place, one held by two
        warps could be read by one after the other has written it."""
        from steerfast.kernels.launch_table import config_for

        for D in [*range(1, 2100), *range(2100, 40000, 97)]:
            both = [config_for(D, element_size, reads, arch) for reads in (False, True)]
            assert both[0].num_warps == both[1].num_warps
            for config in both:
                assert config.BLOCK_D >= D
                assert config.num_warps == 1 or 32 * config.num_warps <= config.BLOCK_D

    def test_the_nearest_size(self) -> None:
        from steerfast.kernels.launch_table import Config, config_for, rule

        table = json.loads((ROOT / "kernels" / "tables" / "launch.json").read_text())
        entries = table["architectures"]["sm_90"]["16"]
        for D, entry in ((4096, "4096"), (4000, "4096"), (3500, "3072"), (2049, "3072")):
            config = config_for(D, 2, True, "sm_90")
            wanted = entries[entry]
            assert config == Config(4096, wanted["num_warps"], wanted["maxnreg"]["with_reads"])
        assert config_for(100, 2, True, "sm_90") == Config(128, rule(128))
        assert config_for(4096, 2, True, "sm_75") == Config(4096, rule(4096))


def script(name: str) -> ModuleType:
    """A module of benchmarks/gpu. They import triton, so not before it is known to be there."""
    return importlib.import_module(f"gpu.{name}")


def summed_layouts(ttgir: str, D: int) -> set[str]:
    """How the D elements of a row, padded, lie in the threads that add them up."""
    block = 1 << (D - 1).bit_length()
    defined = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<\{.*\}>)$", ttgir, re.MULTILINE))
    used = re.findall(rf"tt\.reshape %\S+ allow_reorder : tensor<{block}xf\d\d, (#\w+)>", ttgir)
    return {defined[name] for name in used}
