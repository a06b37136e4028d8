"""Every backend against the same cases and laws, and the reference against an oracle that shares nothing with it.

Backends whose kernels are interpreted or emulated get the quick cases. Triton's interpreter is chosen
while triton is imported, so it has a process of its own, in which this file runs again.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import oracle
import pytest
import torch
import triton_interpreter

from steerfast import ops, testing
from steerfast.errors import SteerfastError
from steerfast.ops import backends, reference
from steerfast.ops.records import GateKind, Read
from steerfast.testing import recipes

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the process that test_triton_... starts
ISAS = ("avx512", "avx2", "baseline")
FAMILIES = list(dict.fromkeys(case.family for case in testing.cases(quick=True)))
LAWS = testing.LAWS | testing.EXACT_LAWS | testing.FAR_LAWS
WIDTHS = (1, 7, 100, 576)
QUICK = ((torch.float16, 100), (torch.float32, 7))


def names() -> list[str]:
    if INTERPRETED:
        return ["triton"]
    cpu = any(status.name == "cpu" and status.available for status in backends.statuses())
    return ["reference", *(ISAS if cpu else ())]


@pytest.fixture(params=names())
def backend(request):
    """(module of ops, whether only the quick cases are for it)."""
    if request.param == "reference":
        yield reference, False
    elif request.param == "triton":
        from steerfast.ops import triton as triton_ops

        yield triton_ops, True
    else:
        before = torch.ops.steerfast.cpu_isa()
        try:
            backends.select_cpu_isa(request.param)
        except SteerfastError as error:
            pytest.skip(str(error))
        yield ops, False
        backends.select_cpu_isa(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_cases(backend, family):
    run, quick = backend
    wrong, count = [], 0
    for case in testing.cases(quick=quick):
        if case.family != family:
            continue
        count += 1
        try:
            case.check(*run.steer_add_rms_norm(*case.arguments))
        except AssertionError as error:
            wrong.append(str(error))
    assert count
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def several_threads():
    """The size of a batch decides how many of them take part."""
    torch.set_num_threads(max(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", LAWS)
def test_laws(backend, name, request):
    run, quick = backend
    if run is reference and name == "rows_are_independent":
        pytest.skip("torch's sums depend on the number of rows")
    more = {}
    if name == "rows_are_independent":
        request.getfixturevalue("several_threads")
        more = {"sizes": (1, 2, 7, 17)} if quick else {}
    for dtype, width in QUICK if quick else itertools.product(testing.DTYPES, WIDTHS):
        LAWS[name](run, dtype, width, **more)


@pytest.mark.skipif(INTERPRETED, reason="not about triton")
@pytest.mark.skipif(bool(emulated.builder.missing()), reason=str(emulated.builder.missing()))
def test_laws_emulated():
    """Of the operators, on the CUDA kernels; tests/ops/test_emulated_cuda.py has the cases and the exact laws."""
    run = emulated.Ops(emulated.build())
    for law in testing.LAWS.values():
        for dtype, width in ((torch.bfloat16, 72), (torch.float16, 100), (torch.float32, 7)):
            law(run, dtype, width)


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.skipif(bool(triton_interpreter.missing()), reason=str(triton_interpreter.missing()))
def test_triton_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "test_cases or test_laws"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout


class TestSuite:
    """The suite itself: it covers what it says, and its cases are fair."""

    pytestmark = pytest.mark.skipif(INTERPRETED, reason="not about a backend")

    def test_cases_are_lazy_reproducible_and_named_apart(self):
        first = [case.id for case in testing.cases()]
        assert len(first) == len(set(first))
        assert 200 <= len(first) <= 500
        assert first == [case.id for case in testing.cases()]
        one, other = (next(testing.cases([torch.float32], [63], [5], seed=s)) for s in (0, 1))
        assert not torch.equal(one.x, other.x)

    @pytest.mark.parametrize("quick", [False, True])
    def test_every_operator_gate_and_finish_is_steered_with(self, quick):
        without_programs = [len(case.steering.reads) == 0 for case in testing.cases(quick=quick)]
        assert any(without_programs)
        assert not all(without_programs)
        found: dict[str, set] = {"op": set(), "gate": set(), "finish": set(), "count": set()}
        orders, partners, keys = set(), set(), set()
        for case in testing.cases(quick=quick):
            orders.add(case.norm_order)
            slots = case.steering.row_slot[case.active].long().unique()
            for delta, finish, program, count in case.steering.records[slots].tolist():
                found["finish"].add((finish, delta >= 0, count > 0))
                found["count"].add(count)
                if not count:
                    continue
                reads = testing.bounds.reads_of(case.steering.reads[program, :count])
                found["op"] |= {read.op for read in reads}
                found["gate"] |= {read.gate for read in reads}
                partners |= {read.partner for read in reads}
                keys |= {read.key for read in reads}
        assert orders == {"hf", "fp32"}
        assert found["op"] == set(recipes.Op)
        assert found["gate"] == set(GateKind)
        assert {0, 1, 16} <= found["count"]
        assert len(found["finish"]) == 9
        assert {0, 1, 15} & partners
        assert len(keys) > 5

    def test_both_sides_of_every_threshold_are_taken(self):
        open_, closed = 0, 0
        for case in testing.cases([torch.float32]):
            if case.family != "thresholds":
                continue
            moved = (case.stream != case.h.double()).any(-1)
            open_ += int(moved[case.active].sum())
            closed += int((~moved)[case.active].sum())
        assert min(open_, closed) > 5

    def test_rows_near_a_threshold_are_refused(self):
        case = next(testing.cases([torch.float32], [63], [5]))
        table = testing.Table(63)
        key = table.row(case.h[0] / case.h[0].norm())
        bias = -float(case.h[0].norm())
        slot = table.slot(None, recipes.gated(recipes.constant(key, 1.0), GateKind.HARD, key, bias))
        steering = table.steering(torch.full((5,), slot), torch.ones(5))
        clear = testing.bounds.analyse(case.h, steering).clear
        assert not clear[0]
        assert clear[1:].all()

    def test_a_case_sees_what_is_wrong(self):
        case = next(testing.cases([torch.bfloat16], [576], [64]))
        stream, normed = reference.steer_add_rms_norm(*case.arguments)
        case.check(stream, normed)
        row = int(case.active.nonzero()[0])
        idle = int((~case.active).nonzero()[0])
        wrong = stream.clone()
        wrong[row, 7] = stream[row, 7] * 1.02
        with pytest.raises(AssertionError, match=rf"stream\[{row}, 7\]"):
            case.check(wrong)
        wrong[row, 7] = torch.nan
        with pytest.raises(AssertionError, match=rf"stream\[{row}, 7\]"):
            case.check(wrong)
        wrong = stream.clone()
        wrong[idle, 3] = torch.nextafter(wrong[idle, 3], wrong[idle, 4])
        with pytest.raises(AssertionError):
            case.check(wrong)
        wrong = normed.clone()
        wrong[idle, 5] *= 1.02
        with pytest.raises(AssertionError, match=rf"normed\[{idle}, 5\]"):
            case.check(stream, wrong)
        with pytest.raises(AssertionError, match=r"wanted torch\.bfloat16"):
            case.check(stream.float())


# The reference against the oracle: public operators on one side, their reads on the other.


def unit(generator: torch.Generator, width: int) -> torch.Tensor:
    v = torch.randn(width, generator=generator, dtype=torch.float64)
    return (v / v.norm()).float()


class Pairs:
    """Draws an operator as the oracle's term and as reads on a table, from the same float32 vectors."""

    def __init__(self, width: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.table = testing.Table(width)
        self.width = width

    def number(self, low: float, high: float) -> float:
        """A number that float32 holds."""
        value = low + (high - low) * torch.rand((), generator=self.generator)
        return float(value.float())

    def row(self, v: torch.Tensor) -> tuple[list[float], int]:
        return v.double().tolist(), self.table.row(v)

    def v(self) -> tuple[list[float], int]:
        return self.row(unit(self.generator, self.width))

    def a(self) -> tuple[list[float], int]:
        return self.row(1.7 * unit(self.generator, self.width))

    def plane(self) -> list[tuple[list[float], int]]:
        square = torch.randn(self.width, 2, generator=self.generator, dtype=torch.float64)
        return [self.row(b) for b in torch.linalg.qr(square)[0].T.float()]

    def operator(self, name: str) -> tuple[oracle.Term, list[Read]]:
        o, r, t = oracle, recipes, self.number(-20.0, 20.0)
        v, row = self.v()
        a, row_a = self.a()
        c, angle = self.number(-2.0, 2.0), self.number(-3.0, 3.0)
        (b1, row_1), (b2, row_2) = self.plane()
        both = r.joined(r.ablate(row_1, c), r.ablate(row_2, c))
        return {
            "add": (o.Term(o.add, (v, t)), r.constant(row, t)),
            "add_relative": (o.Term(o.add_relative, (v, c)), r.add_relative(row, c)),
            "signed": (o.Term(o.signed, (v, c)), r.signed(row, c)),
            "ablate": (o.Term(o.ablate, ([v],)), r.ablate(row)),
            "ablate two": (o.Term(o.ablate, ([b1, b2], c)), both),
            "clamp": (o.Term(o.clamp, (v, t)), r.clamp(row, t)),
            "floor": (o.Term(o.floor, (v, t)), r.floor(row, t)),
            "ceiling": (o.Term(o.ceiling, (v, t)), r.ceiling(row, t)),
            "reflect": (o.Term(o.reflect, (v,)), r.reflect(row)),
            "map": (o.Term(o.map_, (a, v, c, t)), r.linear(row_a, row, c, t)),
            "feature_clamp": (
                o.Term(o.feature_clamp, (a, v, t, c, 0.5)),
                r.feature_clamp(row_a, row, t, c, 0.5),
            ),
            "rotate_to": (o.Term(o.rotate_to, (b1, b2, angle)), r.rotate_to(row_1, row_2, angle)),
            "rotate_by": (o.Term(o.rotate_by, (b1, b2, angle)), r.rotate_by(row_1, row_2, angle)),
            "slerp": (o.Term(o.slerp, (v, c / 2)), r.slerp(row, c / 2)),
        }[name]

    def gated(self, pair: tuple[oracle.Term, list[Read]], gate: str):
        term, reads = pair
        if gate == "open":
            return pair
        key, row = self.v()
        kind, bias = GateKind[gate.upper()], self.number(-0.3, 0.3)
        return (
            oracle.Term(term.operator, term.arguments, getattr(oracle, gate)(key, bias)),
            recipes.gated(reads, kind, row, bias),
        )


OPERATORS = [
    "add",
    "add_relative",
    "signed",
    "ablate",
    "ablate two",
    "clamp",
    "floor",
    "ceiling",
    "reflect",
    "map",
    "feature_clamp",
    "rotate_to",
    "rotate_by",
    "slerp",
]


def assert_oracle_agrees(
    table: testing.Table, plans: list[oracle.Plan], h: torch.Tensor, gains: torch.Tensor
) -> None:
    """Row n is in slot n + 1. Both in float64; the numbers in reads are float32, hence 1e-6."""
    steering = table.steering(torch.arange(1, len(h) + 1), gains)
    got = reference.steer_rows(h, steering, torch.float64)
    for n, plan in enumerate(plans):
        row = h[n].double().tolist()
        wanted = torch.tensor(plan.steer(row, float(gains[n])), dtype=torch.float64)
        scale = float(h[n].double().norm() + wanted.norm()) + 1.0
        assert (got[n] - wanted).abs().max() <= 3e-7 * scale, plan


@pytest.mark.skipif(INTERPRETED, reason="not about a backend")
class TestOracle:
    @pytest.mark.parametrize("gate", ["open", "hard", "cosine", "sigmoid"])
    @pytest.mark.parametrize("name", OPERATORS)
    def test_operator(self, name, gate):
        """Alone, beside a constant part, and with each finish; a row of zeros among the rows."""
        width, rows = 23, 8
        pairs = Pairs(width, 7)
        h = 4.0 * torch.randn(rows, width, generator=pairs.generator)
        h[0] = 0.0
        plans = []
        for n in range(rows):
            term, reads = pairs.gated(pairs.operator(name), gate)
            finish = ("none", "preserve", "shrink", "none")[n % 4]
            delta, terms = None, [term]
            if n % 2:
                delta = 3.0 * unit(pairs.generator, width)
                terms.append(oracle.Term(oracle.add, (delta.double().tolist(), 1.0)))
            pairs.table.slot(delta, reads, finish)
            plans.append(oracle.Plan(terms, finish))
        gains = torch.tensor([1.0, 1.0, 0.5, -1.5, 1.0, 0.0, 2.0, 1.0])
        assert_oracle_agrees(pairs.table, plans, h, gains)

    def test_many_terms(self):
        """Random plans of up to sixteen reads, partners and keys renumbered."""
        width, rows = 19, 40
        pairs = Pairs(width, 11)
        plans = []

        def choose(options: list[str]) -> str:
            return options[int(pairs.number(0.0, len(options) - 1e-3))]

        for _ in range(rows):
            terms, reads = [], []
            for _ in range(7):
                term, more = pairs.gated(
                    pairs.operator(choose(OPERATORS)),
                    choose(["open", "hard", "cosine", "sigmoid"]),
                )
                if len(reads) + len(more) <= 16:
                    terms.append(term)
                    reads = recipes.joined(reads, more)
            finish = choose(["none", "preserve", "shrink"])
            pairs.table.slot(None, reads, finish)
            plans.append(oracle.Plan(terms, finish))
        h = 4.0 * torch.randn(rows, width, generator=pairs.generator)
        assert_oracle_agrees(pairs.table, plans, h, torch.full((rows,), 0.75))

    def test_slerp_at_its_ends(self):
        """Along the axis and against it nothing happens; just beside them something does."""
        axis = testing.streams.uniform_axis(16)
        across = torch.zeros(16)
        across[:2] = torch.tensor([1.0, -1.0]) * 2**-0.5
        angles = (0.0, 0.5e-4, 2e-4, math.pi - 2e-4, math.pi - 0.5e-4, math.pi)
        h = torch.stack([4 * (math.cos(w) * axis.double() + math.sin(w) * across) for w in angles])
        h = h.double()
        table, plans = testing.Table(16), []
        row = table.row(axis)
        for _ in angles:
            table.slot(None, recipes.slerp(row, 0.5))
            plans.append(oracle.Plan([oracle.Term(oracle.slerp, (axis.double().tolist(), 0.5))]))
        assert_oracle_agrees(table, plans, h, torch.ones(len(angles)))
        out = reference.steer_rows(h, table.steering(torch.arange(1, 7), torch.ones(6)))
        moved = (out != h).any(-1)
        assert moved.tolist() == [False, False, True, True, False, False]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_norm_orders(self, dtype):
        """Where each order rounds: all but the few elements whose float32 rstd tips a rounding agree."""
        generator = torch.Generator().manual_seed(5)
        stream = (3 * torch.randn(12, 200, generator=generator)).to(dtype)
        weight = (1 + 0.1 * torch.randn(200, generator=generator)).to(dtype)

        def rounded(value: float) -> float:
            return float(torch.tensor(value, dtype=torch.float64).to(dtype))

        found = {}
        for order, inner in (("hf", rounded), ("fp32", float)):
            rows = stream.double().tolist()
            wanted = [oracle.rms_norm(row, weight.double().tolist(), 1e-5, inner) for row in rows]
            wanted = torch.tensor(wanted, dtype=torch.float64).to(dtype)
            found[order] = reference.rms_norm(stream, weight, 1e-5, order)
            assert (found[order] != wanted).float().mean() < 0.005
        assert (found["hf"] != found["fp32"]).float().mean() > 0.05
