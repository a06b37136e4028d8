"""What the ops say about arguments that do not fit: which one, what came, what is wanted, what to do.

Compiled kernels check tersely and first; ``explain`` repeats a refused call's checks in words, so that the good
path pays nothing. The Triton ops, which have no checks of their own, ask it first.
``validate`` looks at values too, which on a GPU would cost a synchronisation a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steerfast.ops.forms import NormOrder, Parts
from steerfast.ops.records import (
    FINISH_CODES,
    MAX_READS,
    READ_WIDTH,
    RECORD_WIDTH,
    GateKind,
    Op,
    Steering,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def norm_order_flag(op: str, norm_order: NormOrder) -> bool:
    """The schema's ``fp32_norm``; ValueError for an unknown order."""
    if norm_order not in ("hf", "fp32"):
        raise ValueError(f"{op}: norm_order is {norm_order!r}; wanted 'hf' or 'fp32'")
    return norm_order == "fp32"


def explain(parts: Parts) -> None:
    """Raises ValueError for the first argument of a call that does not fit; returns if all do, quickly."""
    op, residual, x, weight = parts.op, parts.residual, parts.x, parts.weight
    stream = "stream" if x is None else "residual"
    dtype, device = residual.dtype, residual.device
    if residual.ndim < 1 or dtype not in DTYPES:
        raise ValueError(
            f"{op}: {stream} is {dtype} {list(residual.shape)}; wanted float32, bfloat16 or "
            "float16 of shape [..., D]"
        )
    if x is not None and (x.shape != residual.shape or x.dtype != dtype):
        raise ValueError(
            f"{op}: x is {x.dtype} {list(x.shape)} but residual is {dtype} {list(residual.shape)}; "
            "both must be [..., D] of one dtype"
        )
    if x is not None and x.device != device:
        raise _elsewhere(op, "x", x, stream, residual)
    # Not numel(): while a graph with any number of rows is traced, that would fix the number.
    count, width = math.prod(residual.shape[:-1]), residual.shape[-1]
    if weight is not None:
        if weight.shape != (width,) or weight.dtype not in (dtype, torch.float32):
            raise ValueError(
                f"{op}: weight is {weight.dtype} {list(weight.shape)}; wanted [{width}] of {dtype} "
                "or float32"
            )
        if parts.in_place and weight.dtype != dtype:
            raise ValueError(f"{op}: weight is {weight.dtype}, but in place it must be {dtype}")
    for name, tensor, wanted, shape in _tables(parts, count, width):
        if tensor.dtype != wanted or tensor.shape != shape:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}; wanted {wanted} {list(shape)} for "
                f"{count} rows of width {width}"
            )
        if tensor.device != device:
            raise _elsewhere(op, name, tensor, stream, residual)
        if not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} has strides {tensor.stride()}; call .contiguous() on it"
            )
    if parts.in_place:
        for name, written in (("x", x), (stream, residual)):
            if written is not None and not _rows_at_one_stride(written):
                raise ValueError(
                    f"{op}: {name} has strides {written.stride()}; in place it must be rows at one stride, "
                    "contiguous within a row and not overlapping"
                )


def refuse_shared_memory(parts: Parts) -> None:
    """ValueError where x and residual of a call in place have an element in common: one result would overwrite
    the other, or an input that is still to be read. It asks for addresses, which no tensor has while a graph is
    traced, so it is for those who compute: ``explain`` does not."""
    x, residual = parts.x, parts.residual
    if x is None or torch.compiler.is_compiling() or not _overlap(x, residual):
        return
    other = "steer_add" if parts.op == "steer_halves_" else parts.op.removesuffix("_")
    raise ValueError(
        f"{parts.op}: x and residual share memory, and in place each gets a result of its own; pass "
        f"x.clone(), or use {other}"
    )


def _overlap(x: Tensor, residual: Tensor) -> bool:
    """Whether two tensors [..., D] of one shape and dtype have an element in common. What has no memory has none."""
    begins = x.data_ptr(), residual.data_ptr()
    if 0 in begins or x.device != residual.device:  # 0: on meta
        return False
    ends = [begin + _extent(one) for begin, one in zip(begins, (x, residual), strict=True)]
    if ends[0] <= begins[1] or ends[1] <= begins[0]:
        return False
    # Perhaps only interleaved: row by row, in the order of addresses. Seldom, so it may take its time.
    rows = [_rows_in_memory(begin, one) for begin, one in zip(begins, (x, residual), strict=True)]
    width = x.shape[-1] * x.element_size()
    starts = torch.cat(rows).sort().values
    return bool((starts[1:] - starts[:-1] < width).any())


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    far = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (far + 1) * tensor.element_size()


def _rows_in_memory(begin: int, tensor: Tensor) -> Tensor:
    """[N] int64: the address of each row."""
    starts = torch.tensor([begin])
    for n, stride in zip(tensor.shape[:-1], tensor.stride(), strict=False):
        starts = (starts[:, None] + torch.arange(n) * (stride * tensor.element_size())).flatten()
    return starts


_Table = tuple[str, Tensor, torch.dtype, tuple[int, ...]]


def _tables(parts: Parts, count: int, width: int) -> list[_Table]:
    """(name, tensor, dtype, shape) of what must be contiguous; a weight has been seen to be of that shape."""
    found: list[_Table] = []
    if parts.weight is not None:
        found.append(("weight", parts.weight, parts.weight.dtype, (width,)))
    if parts.steering is not None:
        row_slot, row_gain, records, reads, bank = parts.steering
        found.append(("row_slot", row_slot, torch.int32, (count,)))
        found.append(("row_gain", row_gain, torch.float32, (count,)))
        found.append(("records", records, torch.int32, (*records.shape[:1], RECORD_WIDTH)))
        found.append(("reads", reads, torch.int32, (*reads.shape[:1], MAX_READS, READ_WIDTH)))
        found.append(("bank", bank, torch.float32, (*bank.shape[:1], width)))
    return found


def _elsewhere(op: str, name: str, tensor: Tensor, stream: str, residual: Tensor) -> ValueError:
    return ValueError(
        f"{op}: {name} is on {tensor.device} but {stream} is on {residual.device}; move it there"
    )


def _rows_at_one_stride(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        return False
    try:
        rows = tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        return False
    return rows.shape[0] <= 1 or rows.stride(0) >= rows.shape[1]


def validate(steering: Steering) -> None:
    """ValueError for the first value of a table or route that no kernel may see.

    Slots, bank rows, programs and places in a program within range; known codes; everything that a
    record reaches finite. Reads the tensors back to the host, so on a GPU it synchronises: call it
    where a table is filled by hand. ``steerfast.table.table`` and ``steerfast.routing.route`` fill them right.
    """
    slot, gain, records, reads, bank = (tensor.cpu() for tensor in steering)
    bad = _first(slot >= records.shape[0])
    if bad is not None:
        raise ValueError(f"row_slot[{bad}] is {slot[bad]}; there are slots 0..{len(records) - 1}")
    bad = _first(~gain.isfinite())
    if bad is not None:
        raise ValueError(f"row_gain[{bad}] is {gain[bad]}; it must be finite")
    rows = bank.shape[0]
    finite = bank.isfinite().all(-1)
    for place, record in enumerate(records.tolist()):
        delta, finish, program, count = record
        if delta >= rows:
            raise ValueError(f"records[{place}] names delta {delta}; the bank has {rows} rows")
        if delta >= 0 and not finite[delta]:
            raise ValueError(f"bank[{delta}], the delta of slot {place}, holds NaN or infinity")
        if finish not in FINISH_CODES.values():
            raise ValueError(f"records[{place}] has finish {finish}; known: {FINISH_CODES}")
        if not 0 <= count <= MAX_READS:
            raise ValueError(f"records[{place}] has {count} reads; a program has 0..{MAX_READS}")
        if count and not 0 <= program < len(reads):
            raise ValueError(f"records[{place}] names program {program} of {len(reads)}")
        for i in range(count):
            _validate_read(f"reads[{program}, {i}]", reads[program, i], count, finite)


def _validate_read(name: str, read: Tensor, count: int, finite: Tensor) -> None:
    op, source, target, partner, gate, key = read[:6].tolist()
    if op not in list(Op) or gate not in list(GateKind):
        raise ValueError(f"{name} has operator {op} and gate {gate}; see steerfast.ops.records")
    for field, row in (("source", source), ("target", target)):
        if row >= len(finite):
            raise ValueError(f"{name} has {field} {row}; the bank has {len(finite)} rows")
        if row >= 0 and not finite[row]:
            raise ValueError(f"bank[{row}], the {field} of {name}, holds NaN or infinity")
    for field, place in (("partner", partner), ("key", key)):
        if place >= count:
            raise ValueError(f"{name} has {field} {place}; its program has {count} reads")
    if not read[6:].contiguous().view(torch.float32).isfinite().all():
        raise ValueError(f"{name} has a coefficient that is NaN or infinite")


def _first(wrong: Tensor) -> int | None:
    places = wrong.nonzero()
    return int(places[0]) if len(places) else None
