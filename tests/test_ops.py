"""The fused ops: every backend here against the float64 definition, and the laws they promise."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from steerfast import backends, ops, reference, testing
from steerfast.errors import SteerfastError
from steerfast.reference import Steering

ISAS = ("avx512", "avx2", "baseline")
CASES = {case.id: case for case in testing.cases()}


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
def test_within_tolerance_of_float64(backend, case):
    case.check(*backend.steer_add_rms_norm(*case_arguments(case)))
    case.check(backend.steer_add(case.x, case.residual, case.steering))
    case.check(*backend.steer_rms_norm(case.h, case.weight, case.eps, case.steering))
    case.check(backend.steer(case.h, case.steering))


def case_arguments(case):
    return case.x, case.residual, case.weight, case.eps, case.steering


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unsteered_rows_keep_the_bits_of_eager_addition(backend, case):
    stream, _ = backend.steer_add_rms_norm(*case_arguments(case))
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


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bits(dtype):
    if "avx512" not in built():
        pytest.skip("no compiled CPU kernel")
    before, results = torch.ops.steerfast.cpu_isa(), {}
    for case in testing.cases([dtype], widths=(7, 63, 576, 1025), rows=(64,)):
        for isa in ISAS:
            try:
                backends.select_cpu_isa(isa)
            except SteerfastError:
                continue
            results[isa] = ops.steer_add_rms_norm(*case_arguments(case))
        backends.select_cpu_isa(before)
        for isa, pair in results.items():
            assert all(map(torch.equal, pair, results["baseline"])), f"{isa} differs in {case.id}"


def test_a_row_does_not_depend_on_its_batch(backend):
    """Bitwise: neighbours, batch size (and so the number of threads), slot mix."""
    case = next(testing.cases([torch.bfloat16], widths=[576], rows=[600]))
    stream, normed = backend.steer_add_rms_norm(*case_arguments(case))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    slot, gain, records, bank = case.steering
    shuffled = Steering(slot[order], gain[order], records, bank)
    again = backend.steer_add_rms_norm(
        case.x[order], case.residual[order], case.weight, case.eps, shuffled
    )
    assert torch.equal(again[0], stream[order])
    assert torch.equal(again[1], normed[order])
    if backend is reference:
        return  # torch's own mean() picks its summation order by the number of rows
    for row in range(0, 600, 37):
        one = Steering(slot[row : row + 1], gain[row : row + 1], records, bank)
        alone = backend.steer_add_rms_norm(
            case.x[row : row + 1], case.residual[row : row + 1], case.weight, case.eps, one
        )
        assert torch.equal(alone[0][0], stream[row])
        assert torch.equal(alone[1][0], normed[row])


def test_in_place_equals_functional(backend):
    for case in testing.cases(widths=(63, 576), rows=(5,)):
        stream, normed = backend.steer_add_rms_norm(*case_arguments(case))
        x, residual = case.x.clone(), case.residual.clone()
        backend.steer_add_rms_norm_(x, residual, case.weight, case.eps, case.steering)
        assert torch.equal(residual, stream)
        assert torch.equal(x, normed)
        x, residual = case.x.clone(), case.residual.clone()
        backend.add_rms_norm_(x, residual, case.weight, case.eps)
        wanted = backend.add_rms_norm(case.x, case.residual, case.weight, case.eps)
        assert torch.equal(residual, wanted[0])
        assert torch.equal(x, wanted[1])


def test_shapes_strides_and_alignment(backend):
    case = next(testing.cases([torch.bfloat16], widths=[100], rows=[6]))
    wanted = backend.steer_add_rms_norm(*case_arguments(case))
    wide = torch.zeros(6, 240, dtype=torch.bfloat16)
    wide[:, 3:103], wide[:, 111:211] = case.x, case.residual  # rows at stride 240, unaligned
    strided = backend.steer_add_rms_norm(
        wide[:, 3:103], wide[:, 111:211], case.weight, case.eps, case.steering
    )
    assert all(map(torch.equal, strided, wanted))
    cube = backend.steer_add_rms_norm(
        case.x.view(2, 3, 100), case.residual.view(2, 3, 100), *case_arguments(case)[2:]
    )
    assert cube[0].shape == (2, 3, 100)
    assert torch.equal(cube[1].view(6, 100), wanted[1])
    columns = backend.steer_add_rms_norm(
        case.x.t().contiguous().t(), case.residual, *case_arguments(case)[2:]
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
            h[:1], Steering(torch.zeros(1, dtype=torch.int32), torch.ones(1), records, bank)
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
    with pytest.raises(ValueError, match="requires grad"):
        ops.steer_add_rms_norm_(
            case.x.clone().requires_grad_(), case.residual, case.weight, 1e-5, case.steering
        )


@pytest.mark.parametrize("name", list(ops._SCHEMAS))
def test_opcheck(name):
    case = next(testing.cases([torch.bfloat16], widths=[63], rows=[5]))
    x, residual, weight, eps, steering = case_arguments(case)
    arguments = {
        "add_rms_norm": (x, residual, weight, eps),
        "add_rms_norm_": (x.clone(), residual.clone(), weight, eps),
        "steer_add_rms_norm": (x, residual, weight, eps, *steering),
        "steer_add_rms_norm_": (x.clone(), residual.clone(), weight, eps, *steering),
        "steer_rms_norm": (residual, weight, eps, *steering),
        "steer_add": (x, residual, *steering),
        "steer": (residual, *steering),
    }[name]
    torch.library.opcheck(getattr(torch.ops.steerfast, name).default, arguments)


def test_compiles_whole():
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    compiled = torch.compile(ops.steer_add_rms_norm, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(
            map(
                torch.equal,
                compiled(*case_arguments(case)),
                ops.steer_add_rms_norm(*case_arguments(case)),
            )
        )


def wrong(case, **changes):
    x, residual, weight, eps, steering = case_arguments(case)
    parts = {"x": x, "residual": residual, "weight": weight, **steering._asdict(), **changes}
    steering = Steering(*(parts[name] for name in Steering._fields))
    return parts["x"], parts["residual"], parts["weight"], eps, steering


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


def test_a_slot_outside_the_table_is_an_error():
    if "avx512" not in built():
        pytest.skip("no compiled CPU kernel")
    case = next(testing.cases([torch.float32], widths=[63], rows=[5]))
    with pytest.raises(RuntimeError, match="outside its table"):
        ops.steer_add_rms_norm(
            *wrong(case, row_slot=torch.full((5,), 4, dtype=torch.int32), row_gain=torch.ones(5))
        )
    records = torch.tensor([[99, 0, 0, 0]] * 4, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="outside its table"):
        ops.steer_add_rms_norm(
            *wrong(
                case,
                records=records,
                row_gain=torch.ones(5),
                row_slot=torch.zeros(5, dtype=torch.int32),
            )
        )
