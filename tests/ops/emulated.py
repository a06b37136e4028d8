"""The CUDA sources on the host: calls of launch_steer in the driver that tests/ops/emulation/build.py builds.

``driver = build()``, then ``driver.run([call(residual, x=x, weight=weight, steering=steering)])`` returns
a ``Result`` for each. ``Ops(driver)`` has the functions of ``steerfast.ops``.
"""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steerfast.ops import forms, interface


def _beside(path: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = _beside("emulation/build.py")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def build(csrc: Path = builder.CSRC) -> Driver:
    """The driver with the kernels of ``csrc``."""
    return Driver(builder.driver(csrc))


@dataclass(frozen=True)
class Layout:
    """Where an array's rows lie: ``stride`` elements apart (default: one behind the other) or at the
    elements ``places``, the first ``offset`` bytes off a multiple of 256."""

    stride: int | None = None
    offset: int = 0
    places: Sequence[int] | None = None


@dataclass(frozen=True)
class Launch:
    kernel: str  # as rows_in_registers<float, float, 1>
    blocks: int
    threads: int
    overlap: bool
    own: int  # bytes of shared memory: what the kernel declares, what was asked for, what both may be
    asked: int
    allowed: int


@dataclass(frozen=True)
class Result:
    stream: Tensor
    normed: Tensor | None
    emptied: Tensor | None
    launches: list[Launch]


@dataclass(frozen=True)
class Call:
    content: bytes
    rows: int
    dtype: torch.dtype
    weight_dtype: torch.dtype


def call(
    residual: Tensor,
    *,
    x: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    steering: Any = None,
    in_place: bool = False,
    halves: bool = False,
    layouts: dict[str, Layout] | None = None,
    **scalars: float,
) -> Call:
    """One call of launch_steer: residual, x [N, D], weight [D] or None, steering or None. In place:
    stream is residual, and normed is x where there are both and the dtypes allow it. halves: in place, and x is emptied."""
    count, width = residual.shape
    weight_dtype = residual.dtype if weight is None else weight.dtype
    arrays: dict[str, Tensor] = {"residual": residual}
    nothing = torch.full((count, width), float("nan"))
    normed_is_x = in_place and x is not None and weight_dtype == residual.dtype
    if x is not None:
        names = "x,emptied" if halves else "x,normed" if normed_is_x and weight is not None else "x"
        arrays[names] = x
    if in_place:
        arrays["residual,stream"] = arrays.pop("residual")
    else:
        arrays["stream"] = nothing.to(residual.dtype)
    if weight is not None:
        arrays["weight"] = weight[None]
        if not any("normed" in name for name in arrays):
            arrays["normed"] = nothing.to(weight_dtype)
    scalars |= {"rows": count, "width": width, "eps": eps}
    scalars |= {"dtype": DTYPES[residual.dtype], "weight_dtype": DTYPES[weight_dtype]}
    if steering is not None:
        # Every field of Steering by its own name: a new one needs a line in main.cpp only.
        arrays |= {name: _as_rows(value) for name, value in steering._asdict().items()}
        scalars |= {"slots": len(steering.records), "bank_rows": len(steering.bank)}
        if hasattr(steering, "reads"):
            scalars["programs"] = len(steering.reads)

    packed = []
    for names, tensor in arrays.items():
        layout = Layout()
        for name in names.split(","):
            layout = (layouts or {}).get(name, layout)
        stride = tensor.shape[1] if layout.stride is None else layout.stride
        for name in names.split(","):
            if name in ("x", "residual", "stream", "normed"):
                scalars[f"{name}_stride"] = stride
        if name == "bank" and layout.places:
            scalars["bank_rows"] = max(layout.places) // width + 1
        places = layout.places or [row * stride for row in range(len(tensor))]
        packed.append(_array(names, tensor, layout.offset, places))
    content = _count(len(scalars))
    content += b"".join(_text(name) + struct.pack("<d", value) for name, value in scalars.items())
    content += _count(len(packed)) + b"".join(packed)
    return Call(content, count, residual.dtype, weight_dtype)


def _as_rows(tensor: Tensor) -> Tensor:
    """[rows, row]; what is not a matrix is one row."""
    return tensor if tensor.dim() == 2 else tensor.reshape(1, -1)


def _count(value: int) -> bytes:
    return struct.pack("<q", value)


def _text(value: str) -> bytes:
    return _count(len(value)) + value.encode()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _array(names: str, tensor: Tensor, offset: int, places: Sequence[int]) -> bytes:
    size = tensor.element_size()
    head = (offset, len(tensor), tensor.shape[1] * size, *(place * size for place in places))
    return _text(names) + struct.pack(f"<{len(head)}q", *head) + _bytes(tensor)


@dataclass(frozen=True)
class Driver:
    path: Path

    def try_run(self, calls: Sequence[Call], **options: int) -> tuple[list[Result] | None, str]:
        """The results, or None and the report of what went wrong. Options are main.cpp's."""
        flags = [f"--{name}={value:d}" for name, value in options.items()]
        with tempfile.TemporaryDirectory() as folder:
            given, answer = Path(folder, "calls"), Path(folder, "results")
            with given.open("wb") as file:
                file.write(_count(len(calls)))
                file.writelines(each.content for each in calls)
            command = [str(self.path), str(given), str(answer), *flags]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                return None, f"exit status {done.returncode}\n{done.stderr}"
            return _results(calls, answer.read_bytes(), done.stdout), done.stderr

    def run(self, calls: Sequence[Call], **options: int) -> list[Result]:
        results, report = self.try_run(calls, **options)
        assert results is not None, report[-6000:]
        return results

    def round(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """float32 values rounded to bfloat16 and to half, as float32."""
        with tempfile.TemporaryDirectory() as folder:
            given, answer = Path(folder, "floats"), Path(folder, "halves")
            given.write_bytes(_bytes(values))
            command = [str(self.path), "--round", str(given), str(answer)]
            subprocess.run(command, check=True)
            both = torch.frombuffer(bytearray(answer.read_bytes()), dtype=torch.float32)
        return both[0::2], both[1::2]


class Ops(interface.Ops):
    """The functions of ``steerfast.ops`` on the emulated device, each a run of the driver."""

    def __init__(self, driver: Driver, **options: int) -> None:
        super().__init__(forms.flat(self._step, self._write, self._write))
        self.driver, self.options = driver, options

    def _step(self, parts: forms.Parts) -> tuple[Tensor, Tensor | None]:
        residual, weight = parts.residual, parts.weight
        if residual.numel() == 0:
            normed = None if weight is None else residual.to(weight.dtype)
            return residual.clone(), normed
        result = self._run(parts)
        normed = None if weight is None else result.normed.reshape(residual.shape)
        return result.stream.reshape(residual.shape), normed

    def _write(self, parts: forms.Parts) -> None:
        residual = parts.residual
        if residual.numel() == 0:
            return
        result = self._run(parts)
        residual.copy_(result.stream.reshape(residual.shape))
        into_x = result.emptied if parts.op == "steer_halves_" else result.normed
        if parts.x is not None:
            parts.x.copy_(into_x.reshape(residual.shape))

    def _run(self, parts: forms.Parts) -> Result:
        rows, layouts = {}, {}
        for name, tensor in (("residual", parts.residual), ("x", parts.x)):
            rows[name] = tensor if tensor is None else tensor.reshape(-1, tensor.shape[-1])
            if tensor is not None and rows[name].stride(1) == 1:
                offset = rows[name].storage_offset() * tensor.element_size() % 256
                layouts[name] = Layout(rows[name].stride(0), offset)
        each = call(
            **rows,
            weight=parts.weight,
            eps=parts.eps,
            steering=parts.steering,
            in_place=parts.in_place,
            halves=parts.op == "steer_halves_",
            layouts=layouts,
            fp32_norm=parts.fp32_norm,
        )
        [result] = self.driver.run([each], **self.options)
        return result


def _results(calls: Sequence[Call], content: bytes, launched: str) -> list[Result]:
    launches: list[list[Launch]] = [[] for _ in calls]
    for line in launched.splitlines():
        *numbers, caller = line.split("\t")
        number, blocks, threads, overlap, *shared = map(int, numbers)
        launches[number].append(Launch(kernel_in(caller), blocks, threads, overlap == 1, *shared))
    at = 0

    def take(bytes_: int) -> bytes:
        nonlocal at
        at += bytes_
        return content[at - bytes_ : at]

    def take_count() -> int:
        return struct.unpack("<q", take(8))[0]

    results = []
    for each, its_launches in zip(calls, launches, strict=True):
        outputs = {}
        for _ in range(take_count()):
            name = take(take_count()).decode()
            dtype = each.weight_dtype if name == "normed" else each.dtype
            rows = torch.frombuffer(bytearray(take(take_count())), dtype=dtype)
            outputs[name] = rows.reshape(each.rows, -1)
        results.append(
            Result(outputs["stream"], outputs.get("normed"), outputs.get("emptied"), its_launches)
        )
    return results


def kernel_in(signature: str) -> str:
    """``name<arguments>`` of the kernel that a demangled name or a launching function's signature names."""
    found = re.search(r"(?:kKernel = .*?|^.*?)(\w+<[\w, ]+>)[;\](]", signature)
    assert found, signature
    return found[1]
