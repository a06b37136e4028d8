"""The fused ops: every backend here against the float64 definition, and the laws they promise."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from steerfast import ops, testing
from steerfast.errors import SteerfastError
from steerfast.ops import backends, forms, reference
from steerfast.ops import triton as triton_ops
from steerfast.ops.records import GateKind, Op, Read, Steering
from steerfast.testing import ulp

ISAS = ("avx512", "avx2", "baseline")
CASES = {  # one with a bit of everything for every dtype; test_conformance.py has the others
    case.id: case
    for case in testing.cases(widths=(63, 576), rows=(5, 64))
    if case.family == "mixed"
}
NO_READS = torch.zeros(0, 16, 12, dtype=torch.int32)


@pytest.mark.parametrize("implementation", [ops, reference, triton_ops])
@pytest.mark.parametrize("name", list(forms.SCHEMAS))
def test_every_implementation_has_every_op(implementation, name):
    """In the schema's order of arguments, but for the steering, which is one, and the norm's order, which is last."""
    schema = forms.SCHEMAS[name].partition(" -> ")[0]
    flat = [argument.split()[1] for argument in schema.strip("()").split(", ")]
    wanted = [one for one in flat if one not in (*Steering._fields, "fp32_norm")]
    wanted += ["steering"] * ("bank" in flat) + ["norm_order"] * ("fp32_norm" in flat)
    assert list(inspect.signature(getattr(implementation, name)).parameters) == wanted


def built() -> list[str]:
    """The backends that this machine can run, the C++ kernel once per instruction set."""
    names = ["reference"]
    if any(status.name == "cpu" and status.available for status in backends.statuses()):
        names += list(ISAS)
    return names


@pytest.fixture(params=built())
def backend(request):
    """The module of ops of one backend."""
    if request.param == "reference":
        yield reference
        return
    before = torch.ops.steerfast.cpu_isa()
    try:
        backends.select_cpu_isa(request.param)
    except SteerfastError as error:
        pytest.skip(str(error))
    yield ops
    backends.select_cpu_isa(before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_ops_are_parts_of_one(backend, case):
    """Within tolerance of float64, and what has less to do gives the same bits."""
    stream, normed = backend.steer_add_rms_norm(*case.arguments)
    case.check(stream, normed)
    assert torch.equal(backend.steer_add(case.x, case.residual, case.steering), stream)
    assert torch.equal(backend.steer(case.h, case.steering), stream)
    again = backend.steer_rms_norm(case.h, case.weight, case.eps, case.steering, case.norm_order)
    assert torch.equal(again[0], stream)
    assert torch.equal(again[1], normed)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unsteered_rows_keep_the_bits_of_eager_addition(backend, case):
    stream, _ = backend.steer_add_rms_norm(*case.arguments)
    idle = ~case.active
    assert torch.equal(stream[idle], case.h[idle])
    plain, _ = backend.add_rms_norm(case.x, case.residual, case.weight, case.eps)
    assert torch.equal(plain, case.h)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_norm_is_llamas_up_to_the_order_of_one_sum(backend, dtype):
    """Equal streams give equal norms but where the last bit of rstd tips a rounding: rare, and one ulp."""
    torch.manual_seed(0)
    x, residual = torch.randn(512, 576).to(dtype), 3 * torch.randn(512, 576).to(dtype)
    norm = LlamaRMSNorm(576, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    stream, normed = backend.add_rms_norm(x, residual, norm.weight.detach(), 1e-5)
    with torch.no_grad():
        wanted = norm(residual + x)
    assert torch.equal(stream, residual + x)
    spacing = 2 * testing.ulp(wanted, dtype) + testing.RELATIVE * wanted.abs()
    assert ((normed - wanted).abs() <= spacing).all()
    if dtype is not torch.float32:
        assert (normed != wanted).float().mean() < 1e-4


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_the_float32_order_of_the_norm_rounds_once(backend, dtype, wide):
    torch.manual_seed(0)
    stream = (3 * torch.randn(64, 576)).to(dtype)
    weight = (1 + 0.1 * torch.randn(576)).to(torch.float32 if wide else dtype)
    _, normed = backend.add_rms_norm(torch.zeros_like(stream), stream, weight, 1e-5, "fp32")
    exact = reference.rms_norm(stream, weight, 1e-5, "fp32", torch.float64)
    assert normed.dtype == weight.dtype
    spacing = 0.5 * ulp(exact, weight.dtype) + 2.0**-21 * exact.abs()
    assert ((normed.double() - exact).abs() <= spacing).all()
    _, twice = backend.add_rms_norm(torch.zeros_like(stream), stream, weight, 1e-5)
    assert torch.equal(normed, twice) == (dtype is torch.float32)


def test_every_instruction_set_gives_the_same_bits():
    """Every operator, gate, finish, dtype and order of the norm; widths with and without a short block."""
    if "avx512" not in built():
        pytest.skip("no compiled CPU kernel")
    before, count = torch.ops.steerfast.cpu_isa(), 0
    for case in testing.cases():
        results = {}
        for isa in ISAS:
            try:
                backends.select_cpu_isa(isa)
            except SteerfastError:
                continue
            results[isa] = ops.steer_add_rms_norm(*case.arguments)
        backends.select_cpu_isa(before)
        for isa, pair in results.items():
            assert all(map(torch.equal, pair, results["baseline"])), f"{isa} differs in {case.id}"
        count += 1
    assert count > 200


# Whatever a kernel makes of it, no neighbour may show: three slots in turn, all rows alike, gains that
# switch rows off. 601 rows are shared out over threads, and D = 576 has whole blocks only, 100 a short one.
@pytest.mark.parametrize("width", [100, 576])
def test_a_row_does_not_depend_on_its_batch(backend, width):
    """Bitwise: neighbours, batch size (and so the number of threads), slot mix."""
    if backend is reference:
        pytest.skip("torch's own sums pick their order by the number of rows")
    generator = torch.Generator().manual_seed(width)
    count, steering = 601, everything(width, generator)
    slot = torch.randint(-1, 3, (count,), generator=generator, dtype=torch.int32)
    slot[:200] = torch.arange(200) // 7 % 3  # runs of an odd length: pairs and single rows
    gain = torch.tensor([1.0, 1.0, 0.0, -0.7])
    gain = gain[torch.randint(4, (count,), generator=generator)]
    x, residual = torch.randn(2, count, width, generator=generator).bfloat16()
    weight = torch.randn(width, generator=generator).bfloat16()

    def run(rows):
        routed = steering._replace(row_slot=slot[rows], row_gain=gain[rows])
        return backend.steer_add_rms_norm(x[rows], residual[rows], weight, 1e-5, routed)

    stream, normed = run(torch.arange(count))
    order = torch.randperm(count, generator=generator)
    for rows in (order, slot.argsort(), *(order[n : n + 1] for n in range(0, count, 37))):
        again = run(rows)
        assert torch.equal(again[0], stream[rows])
        assert torch.equal(again[1], normed[rows])


def everything(width, generator):
    """Three slots: a delta; every operator and gate there is; one read and a finish. Routes are left out."""
    bank = torch.randn(8, width, generator=generator)
    bank = bank / bank.norm(dim=-1, keepdim=True)
    reads = [
        Read(op, place % 8, (place + 1) % 8, place // 2, GateKind(place % 4), (place + 3) % 9, 0.4)
        for place, op in enumerate(Op)
    ]
    one = [Read(Op.AFFINE, 2, 2, slope=-1.0)]
    programs = [program + [Read(Op.KEY)] * (16 - len(program)) for program in (reads, one)]
    return Steering(
        torch.zeros(0, dtype=torch.int32),
        torch.zeros(0),
        torch.tensor([[0, 0, 0, 0], [1, 0, 0, 9], [-1, 1, 1, 1]], dtype=torch.int32),
        torch.tensor([[read.words() for read in program] for program in programs]).int(),
        bank,
    )


def test_in_place_equals_functional(backend):
    for case in CASES.values():
        if case.weight.dtype != case.x.dtype:
            continue
        stream, normed = backend.steer_add_rms_norm(*case.arguments)
        x, residual = case.x.clone(), case.residual.clone()
        norm = (case.weight, case.eps)
        backend.steer_add_rms_norm_(x, residual, *norm, case.steering, case.norm_order)
        assert torch.equal(residual, stream)
        assert torch.equal(x, normed)
        h = case.h.clone()
        backend.steer_(h, case.steering)
        assert torch.equal(h, stream)
        x, residual = case.x.clone(), case.residual.clone()
        backend.add_rms_norm_(x, residual, *norm, case.norm_order)
        wanted = backend.add_rms_norm(case.x, case.residual, *norm, case.norm_order)
        assert torch.equal(residual, wanted[0])
        assert torch.equal(x, wanted[1])


def test_halves_become_a_stream_only_where_they_are_steered(backend):
    """The engine's own norm adds both halves: (0, stream) is exact, and other rows are nobody's business."""
    for case in CASES.values():
        x, residual = case.x.clone(), case.residual.clone()
        backend.steer_halves_(x, residual, case.steering)
        active = reference.active_rows(case.steering).reshape(*x.shape[:-1], 1).expand_as(x)
        stream = backend.steer_add(case.x, case.residual, case.steering)
        assert torch.equal(residual[active], stream[active])
        assert not x[active].any()
        for after, before in ((x, case.x), (residual, case.residual)):
            bits = torch.int32 if x.dtype is torch.float32 else torch.int16
            assert torch.equal(after[~active].view(bits), before[~active].view(bits))


def test_halves_want_rows_of_their_own():
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    shared = case.h[:1].expand(5, 63)
    with pytest.raises(ValueError, match="not overlapping"):
        ops.steer_halves_(shared, case.h.clone(), case.steering)
    with pytest.raises(ValueError, match="both must be"):
        ops.steer_halves_(case.x[:3], case.h.clone(), case.steering)


def test_in_place_wants_rows_of_their_own():
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    shared = case.h[:1].expand(5, 63)
    with pytest.raises(ValueError, match="not overlapping"):
        ops.steer_(shared, case.steering)
    weight = case.weight.float()
    with pytest.raises(ValueError, match="not overlapping"):
        ops.steer_add_rms_norm_(case.x.clone(), shared, weight, case.eps, case.steering)
    with pytest.raises(ValueError, match="not overlapping"):
        ops.steer_add_rms_norm_(shared, case.h.clone(), weight, case.eps, case.steering)


def test_shapes_strides_and_alignment(backend):
    case = next(testing.cases([torch.bfloat16], widths=[100], rows=[6]))
    assert (case.steering.records[case.steering.row_slot[case.active].long(), 3] > 0).any()
    wanted = backend.steer_add_rms_norm(*case.arguments)
    wide = torch.zeros(6, 240, dtype=torch.bfloat16)
    wide[:, 3:103], wide[:, 111:211] = case.x, case.residual  # rows at stride 240, unaligned
    strided = backend.steer_add_rms_norm(wide[:, 3:103], wide[:, 111:211], *case.arguments[2:])
    assert all(map(torch.equal, strided, wanted))
    cube = backend.steer_add_rms_norm(
        case.x.view(2, 3, 100), case.residual.view(2, 3, 100), *case.arguments[2:]
    )
    assert cube[0].shape == (2, 3, 100)
    assert torch.equal(cube[1].view(6, 100), wanted[1])
    columns = backend.steer_add_rms_norm(
        case.x.t().contiguous().t(), case.residual, *case.arguments[2:]
    )
    assert all(map(torch.equal, columns, wanted))
    swapped = case.x.view(2, 3, 100).transpose(0, 1)  # rows at no single stride
    other = backend.add_rms_norm(swapped, swapped, case.weight, case.eps)
    plain = backend.add_rms_norm(swapped.contiguous(), swapped.contiguous(), case.weight, case.eps)
    assert all(map(torch.equal, other, plain))
    nothing = case.steering._replace(row_slot=case.steering.row_slot[:0], row_gain=torch.ones(0))
    empty = backend.steer_add_rms_norm(
        case.x[:0], case.residual[:0], case.weight, case.eps, nothing
    )
    assert empty[0].shape == empty[1].shape == (0, 100)


def test_float32_weight_widens_the_norm(backend):
    case = next(testing.cases([torch.bfloat16], widths=[576], rows=[5]))
    weight = 1.0 + 0.1 * torch.randn(576, generator=torch.Generator().manual_seed(3))
    stream, normed = backend.steer_add_rms_norm(
        case.x, case.residual, weight, case.eps, case.steering
    )
    assert normed.dtype == torch.float32
    unit = backend.steer_rms_norm(
        stream,
        torch.ones(576, dtype=torch.bfloat16),
        case.eps,
        case.steering._replace(row_slot=-torch.ones(5, dtype=torch.int32)),
    )[1]
    assert torch.equal(
        normed, weight * unit.float()
    )  # 16-bit rounding before the weight, none after


def test_values_at_the_edge(backend):
    """Denormals stay, infinity and NaN propagate, ties go to even; bitwise against torch's own sum."""
    tiny = torch.tensor([1e-39, -3e-40, 9.2e-41, 0.0, -0.0, 1.0, 3e38, -3e38])
    for dtype in testing.DTYPES:
        x = tiny.to(dtype).repeat(9)[None]
        residual = tiny.flip(0).to(dtype).repeat(9)[None]
        stream, _ = backend.add_rms_norm(x, residual, torch.ones(72, dtype=dtype), 1e-5)
        assert torch.equal(stream, residual + x)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        every = bits.view(dtype)[None]
        for other in (0.0, 1.0, 1e-3, 3.38e38 if dtype is torch.bfloat16 else 6.5e4):
            shift = torch.full_like(every, other)
            stream, _ = backend.add_rms_norm(every, shift, torch.ones_like(every[0]), 1e-5)
            wanted = shift + every
            assert torch.equal(stream.isnan(), wanted.isnan())
            finite = ~wanted.isnan()
            assert torch.equal(stream[finite].view(torch.int16), wanted[finite].view(torch.int16))


def test_preserve_and_shrink_keep_the_length(backend):
    """A closed form: preserve leaves |h|, shrink at most |h|, and a sum of zero stays zero."""
    h = torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0], [3.0, 4.0, 0.0]])
    bank = torch.tensor([[5.0, 0.0, 0.0], [-3.0, -4.0, 0.0], [-3.0, 0.0, 0.0]])

    def steer(delta, finish):
        records = torch.tensor([[delta, finish, 0, 0]], dtype=torch.int32)
        return backend.steer(
            h[:1],
            Steering(torch.zeros(1, dtype=torch.int32), torch.ones(1), records, NO_READS, bank),
        )[0]

    torch.testing.assert_close(steer(0, 1), torch.tensor([8.0, 4.0, 0.0]) * 5 / 80**0.5)
    torch.testing.assert_close(steer(0, 2), torch.tensor([8.0, 4.0, 0.0]) * 5 / 80**0.5)
    torch.testing.assert_close(steer(2, 1), torch.tensor([0.0, 5.0, 0.0]))
    torch.testing.assert_close(steer(2, 2), torch.tensor([0.0, 4.0, 0.0]))
    assert torch.equal(steer(1, 1), torch.zeros(3))


def test_gradients_flow_through_the_public_ops():
    case = next(testing.cases([torch.float32], widths=[7], rows=[5]))
    inputs = [t.double().requires_grad_() for t in (case.x, case.residual, case.weight)]

    def function(x, residual, weight):
        return ops.steer_add_rms_norm(x, residual, weight, 1e-5, case.steering)

    # float32 inside: gradcheck in double needs the reference's compute dtype, so compare with autograd
    # of the formula written out.
    stream, normed = function(*inputs)
    (stream.sum() + normed.pow(2).sum()).backward()
    got = [t.grad.clone() for t in inputs]
    for t in inputs:
        t.grad = None
    s = reference.steer_rows(inputs[1] + inputs[0], case.steering, torch.float64)
    n = inputs[2] * s * torch.rsqrt(s.pow(2).mean(-1, keepdim=True) + 1e-5)
    (s.sum() + n.pow(2).sum()).backward()
    for mine, t in zip(got, inputs, strict=True):
        torch.testing.assert_close(mine, t.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", [ops, triton_ops])
def test_in_place_refuses_gradients_and_names_what_takes_them(implementation):
    case = next(testing.cases([torch.float32], widths=[7], rows=[5]))
    x, residual = case.x.clone().requires_grad_(), case.residual
    norm = (case.weight, 1e-5)
    for name, arguments in (
        ("add_rms_norm_", (x, residual, *norm)),
        ("steer_add_rms_norm_", (x, residual, *norm, case.steering)),
        ("steer_", (x, case.steering)),
        ("steer_halves_", (x, residual, case.steering)),
    ):
        with pytest.raises(ValueError, match="requires grad") as refused:
            getattr(implementation, name)(*arguments)
        instead = re.search(r"use (\w+) or", str(refused.value)).group(1)
        assert hasattr(implementation, instead)


@pytest.mark.parametrize("implementation", [ops, reference, triton_ops])
def test_an_unknown_order_of_the_norm_is_an_error(implementation):
    case = next(testing.cases([torch.float32], widths=[7], rows=[5]))
    x = case.x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^add_rms_norm: norm_order is 'vllm'; wanted 'hf' or"):
        implementation.add_rms_norm(x, case.residual, case.weight, 1e-5, "vllm")


@pytest.mark.parametrize("name", list(forms.SCHEMAS))
def test_opcheck(name):
    case = next(testing.cases([torch.bfloat16], widths=[63], rows=[5]))
    x, residual, weight, eps, steering, _ = case.arguments_on("cpu")
    norm = (weight.to(x.dtype), eps, False)
    arguments = {
        "add_rms_norm": (x, residual, *norm),
        "add_rms_norm_": (x, residual, *norm),
        "steer_add_rms_norm": (x, residual, *norm, *steering),
        "steer_add_rms_norm_": (x, residual, *norm, *steering),
        "steer_rms_norm": (residual, *norm, *steering),
        "steer_add": (x, residual, *steering),
        "steer": (residual, *steering),
        "steer_": (residual, *steering),
        "steer_halves_": (x, residual, *steering),
    }[name]
    torch.library.opcheck(getattr(torch.ops.steerfast, name).default, arguments)


@pytest.mark.parametrize("name", list(forms.SCHEMAS))
def test_a_graph_of_any_number_of_rows_is_traced(name):
    """As serving engines trace it: the rows are dynamic, and the route is cut to them. No check may fix their number."""
    case = next(testing.cases([torch.float32], widths=[64], rows=[6]))
    schema, op = forms.SCHEMAS[name], getattr(torch.ops.steerfast, name).default

    def step(x, residual):
        slot, gain, *table = case.steering
        written = [x.clone(), residual.clone()] if " x," in schema else [residual.clone()]
        norm = [case.weight, case.eps, True] if "weight" in schema else []
        steering = [slot[: len(x)], gain[: len(x)], *table] if "row_slot" in schema else []
        result = op(*written, *norm, *steering)
        return written if result is None else result

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rows in (6, 4, 3):
        given = [case.x[:rows].clone(), case.residual[:rows].clone()]
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 0)  # an error where a trace fixes it
        for found, wanted in zip(compiled(*given), step(*given), strict=True):
            assert torch.equal(found, wanted)


def test_compiles_whole():
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    compiled = torch.compile(ops.steer_add_rms_norm, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(
            map(
                torch.equal,
                compiled(*case.arguments),
                ops.steer_add_rms_norm(*case.arguments),
            )
        )


def wrong(case, **changes):
    parts = {"x": case.x, "residual": case.residual, "weight": case.weight}
    parts |= case.steering._asdict() | changes
    steering = Steering(*(parts[name] for name in Steering._fields))
    return parts["x"], parts["residual"], parts["weight"], case.eps, steering


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": torch.zeros(5, 64)},
            r"x is torch.float32 \[5, 64\] but residual is torch.float32 \[5, 63\]",
        ),
        ({"x": torch.zeros(5, 63).half()}, "both must be"),
        ({"weight": torch.zeros(64)}, r"weight is torch.float32 \[64\]; wanted \[63\]"),
        ({"weight": torch.zeros(63).double()}, "weight is torch.float64"),
        (
            {"row_slot": torch.zeros(4, dtype=torch.int32)},
            r"row_slot is torch.int32 \[4\]; wanted torch.int32 \[5\]",
        ),
        ({"row_slot": torch.zeros(5, dtype=torch.int64)}, "row_slot is torch.int64"),
        ({"bank": torch.zeros(3, 62)}, r"bank is torch.float32 \[3, 62\]"),
        ({"records": torch.zeros(4, 3, dtype=torch.int32)}, "records is"),
        ({"x": torch.zeros(5, 63, device="meta")}, "x is on meta but residual is on cpu"),
        ({"bank": torch.zeros(3, 63, device="meta")}, "bank is on meta"),
        (
            {"x": torch.zeros(5, 63).int(), "residual": torch.zeros(5, 63).int()},
            "wanted float32, bfloat16 or float16",
        ),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    with pytest.raises(ValueError, match=message):
        ops.steer_add_rms_norm(*wrong(case, **changes))


GOOD = Read(Op.AFFINE, 0, 0, slope=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 3}, r"row_slot\[2\] is 3; there are slots 0..1"),
        ({"record": [2, 0, 0, 1]}, r"records\[1\] names delta 2; the bank has 2 rows"),
        ({"record": [0, 3, 0, 1]}, r"records\[1\] has finish 3"),
        ({"record": [0, -1, 0, 1]}, r"records\[1\] has finish -1"),
        ({"record": [0, 0, 1, 1]}, r"records\[1\] names program 1 of 1"),
        ({"record": [0, 0, -1, 1]}, r"records\[1\] names program -1 of 1"),
        ({"record": [0, 0, 0, 17]}, r"records\[1\] has 17 reads"),
        ({"record": [0, 0, 0, -1]}, r"records\[1\] has -1 reads"),
        ({"read": replace(GOOD, source=2)}, r"reads\[0, 1\] has source 2; the bank has 2 rows"),
        ({"read": replace(GOOD, target=2)}, r"reads\[0, 1\] has target 2; the bank has 2 rows"),
        ({"read": replace(GOOD, partner=2)}, r"has partner 2; its program has 2 reads"),
        ({"read": replace(GOOD, key=2)}, r"has key 2; its program has 2 reads"),
        ({"read": replace(GOOD, op=9)}, r"reads\[0, 1\] has operator 9"),
        ({"read": replace(GOOD, op=-1)}, r"reads\[0, 1\] has operator -1"),
        ({"read": replace(GOOD, gate=4)}, r"reads\[0, 1\] has operator 1 and gate 4"),
    ],
)
def test_what_is_not_in_the_table_is_an_error(changes, message):
    """Before any row is touched, in words, whatever the batch; the op itself names the argument."""
    if "avx512" not in built():
        pytest.skip("no compiled CPU kernel")
    slot = torch.zeros(600, dtype=torch.int32)
    slot[2] = changes.get("slot", 1)
    reads = [GOOD.words(), changes.get("read", GOOD).words()] + [[99] * 12] * 14
    steering = Steering(
        slot,
        torch.ones(600),
        torch.tensor([[0, 0, 0, 0], changes.get("record", [0, 0, 0, 2])], dtype=torch.int32),
        torch.tensor([reads], dtype=torch.int32),
        torch.ones(2, 64),
    )
    stream, normed = torch.ones(600, 64), torch.ones(600, 64)
    with pytest.raises(ValueError, match=message):
        ops.steer_add_rms_norm_(normed, stream, torch.ones(64), 1e-5, steering)
    assert (stream == 1.0).all()
    assert (normed == 1.0).all()
    argument = message.partition("\\")[0].split(" ")[0]
    argument = argument if argument in Steering._fields else "reads"
    with pytest.raises(RuntimeError, match=f"{argument} names something"):
        torch.ops.steerfast.steer(stream, *steering)
    if "slot" not in changes:  # nobody goes there, so nobody minds
        ops.steer(stream, steering._replace(row_slot=torch.zeros_like(slot)))
