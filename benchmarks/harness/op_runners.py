"""Ways of computing stream and norm: eager code with a hook, the fused ops, torch.compile of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from harness import op_forms
from steerfast import ops
from steerfast.ops import reference
from steerfast.ops import triton as triton_ops
from steerfast.ops.reference import Steering

EPS = 1e-5
DISTINCT = 256  # slots of ``distinct``
RUN = 64  # rows of one request that follow each other there, where there are enough


class ResidualAdd(torch.nn.Module):
    """Where a hook would sit: the end of a decoder layer."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + x


def versions(
    form_name: str, dtype: torch.dtype, width: int, rows: int, device: str = "cpu", seed: int = 0
) -> dict[str, Callable[[], Any]]:
    """What is timed, on the same inputs; checked against each other first."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
    x, residual = normal(rows, width).to(dtype), (3 * normal(rows, width)).to(dtype)
    norm = LlamaRMSNorm(width, eps=EPS).to(device, dtype)
    weight = norm.weight.detach().copy_(1.0 + 0.1 * normal(width)).to(dtype)
    form = op_forms.FORMS[form_name](width, dtype, device)
    first = torch.zeros(rows, dtype=torch.long)
    steering = op_forms.shared_steering(form_name, width, first, device)
    idle = steering._replace(row_slot=torch.full_like(steering.row_slot, -1))

    def hooked(steer: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
        add = ResidualAdd()
        add.register_forward_hook(lambda module, args, out: steer(out))

        def eager() -> Any:
            stream = add(x, residual)
            return stream, norm(stream)

        return eager

    def fused(
        steering: Steering, op: Callable[..., Any] = ops.steer_add_rms_norm
    ) -> Callable[[], Any]:
        return lambda: op(x, residual, weight, EPS, steering)

    found: dict[str, Callable[[], Any]] = {"eager": hooked(form.eager)}
    if form.batched is not None:
        found["batched"] = hooked(form.batched)
    found |= {
        "unsteered": fused(idle),
        "steered": fused(steering),
        "steered A/A": fused(steering),
        "plain": lambda: ops.add_rms_norm(x, residual, weight, EPS),
    }
    if rows > 1:
        places = torch.arange(rows) // (RUN if rows > DISTINCT else 1) % DISTINCT
        many = int(places.max()) + 1
        distinct = op_forms.shared_steering(form_name, width, places, device, plans=many)
        found["distinct"] = fused(distinct)
    if device != "cpu":
        found["triton unsteered"] = fused(idle, triton_ops.steer_add_rms_norm)
        found["triton steered"] = fused(steering, triton_ops.steer_add_rms_norm)
    _agree(found, residual)
    return found


def _agree(versions: dict[str, Callable[[], Any]], residual: torch.Tensor) -> None:
    """Whatever steers by the same plan gives the same stream, up to the roundings of eager code."""
    with torch.inference_mode():
        wanted = versions["eager"]()[0].float()
        for name in ("batched", "steered", "triton steered"):
            if name in versions:
                off = (versions[name]()[0].float() - wanted).abs().max()
                assert off <= 2.0**-5 * residual.float().abs().max(), f"{name} disagrees with eager"


def compiled(form_name: str, dtype: torch.dtype, width: int, rows: int) -> Callable[[], Any]:
    """torch.compile of the reference, given no more reads than the form has."""
    form = op_forms.FORMS[form_name](width, dtype, "cpu")
    steering = op_forms.steering(form.plans, width, torch.zeros(rows, dtype=torch.long), "cpu")
    used = int(steering.records[:, 3].max())
    reads = steering.reads[: used > 0, : max(used, 1)].contiguous()
    steering = steering._replace(reads=reads)
    x, residual = torch.randn(rows, width).to(dtype), (3 * torch.randn(rows, width)).to(dtype)
    weight = torch.ones(width, dtype=dtype)
    torch._dynamo.reset()
    function = torch.compile(reference.steer_add_rms_norm, fullgraph=True, dynamic=False)
    return lambda: function(x, residual, weight, EPS, steering)
