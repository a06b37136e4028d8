"""NormForm: which RMSNorm a module computes, read off from what it does to known numbers.

    order "hf":   w * round_T(x * rsqrt(mean(x^2) + eps))      order "fp32":   round_T(w * x * rsqrt(mean(x^2) + eps))

with w the module's weight, 1 + weight, or nothing.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.ops import reference
from steerfast.ops.forms import NormOrder

_WIDTH, _ROWS = 64, 8
_DTYPE = torch.bfloat16  # in which the orders of rounding differ in one of two numbers


@dataclass(frozen=True)
class NormForm:
    """order: where it rounds. weighted: False where nothing multiplies. offset: its weight is 1 + ``weight``. eps: the
    module's attribute of that meaning."""

    order: NormOrder
    weighted: bool
    offset: bool
    eps: str

    def __str__(self) -> str:
        weight = "" if not self.weighted else "(1 + w) * " if self.offset else "w * "
        rounded = "round(x / rms)" if self.order == "hf" else "x / rms"
        return f"{weight}{rounded}"

    def eps_of(self, norm: Any) -> float:
        return float(getattr(norm, self.eps))

    def weight_of(self, norm: Any, stream: Tensor) -> Tensor:
        """What the ops take as weight, [D]."""
        if not self.weighted:
            return torch.ones(stream.shape[-1], dtype=stream.dtype, device=stream.device)
        weight: Tensor = norm.weight
        if not self.offset:
            return weight
        return 1.0 + (weight if weight.dtype is torch.float64 else weight.float())


def form_of(norm: nn.Module) -> NormForm | None:
    """What the module computes; None if it is none of these forms, or has more to it than a weight.

    A bare copy is tried, with weights of its own, on a few numbers: ones or zeros at the start of training would hide what
    the weight does, and hooks what the module is.
    """
    trial = _bare(norm)
    if trial is None:
        return None
    rng = torch.Generator().manual_seed(0)
    # Rows of many sizes, for eps; the smallest are about its root.
    sizes = torch.logspace(-3, 1, _ROWS)[:, None]
    x = (torch.randn((_ROWS, _WIDTH), generator=rng) * sizes).to(_DTYPE)
    weight = torch.empty(_WIDTH).uniform_(-0.9, 0.9, generator=rng).to(_DTYPE)
    if trial._parameters.get("weight") is not None:
        trial._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    try:
        with torch.no_grad():
            got = type(trial).forward(trial, x)
    except Exception:  # whatever it is, it is no norm of this kind
        return None
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return None
    close = {form: _far(got, _computed(form, trial, x)) for form in _forms(trial)}
    best = min(close, key=lambda form: close[form], default=None)
    return best if best is not None and close[best] <= 0.01 else None


def _bare(norm: nn.Module) -> nn.Module | None:
    """A copy without hooks, replaced forward or weights of the model's; None of what has parts of its own."""
    known = {"weight"} if norm._parameters.get("weight") is not None else set()
    theirs = {name for name, value in norm._parameters.items() if value is not None}
    if norm._modules or theirs != known or any(v is not None for v in norm._buffers.values()):
        return None
    trial = copy.copy(norm)
    trial._parameters = dict(norm._parameters)
    for name, value in vars(norm).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            trial.__dict__[name] = OrderedDict()
    for name in ("forward", "_hf_hook", "_old_forward"):
        trial.__dict__.pop(name, None)
    trial.training = False
    # torch's own modules compare it with what they are given.
    if hasattr(trial, "normalized_shape"):
        trial.__dict__["normalized_shape"] = (_WIDTH,)
    return trial


def _forms(norm: nn.Module) -> Iterator[NormForm]:
    names = [
        name
        for name, value in vars(norm).items()
        if isinstance(value, float) and 0 < value < 0.1 and "eps" in name.lower()
    ]
    weighted = norm._parameters.get("weight") is not None
    for eps in names:
        for order in ("hf", "fp32"):
            if weighted:
                yield NormForm(order, True, False, eps)
                yield NormForm(order, True, True, eps)
            else:
                yield NormForm(order, False, False, eps)


def _computed(form: NormForm, norm: nn.Module, x: Tensor) -> Tensor:
    weight = form.weight_of(norm, x)
    return reference.rms_norm(x, weight, form.eps_of(norm), form.order).to(x.dtype)


def _far(got: Tensor, want: Tensor) -> float:
    """The share of numbers that differ; 1 if one of them differs by more than two units in its last place."""
    if got.dtype != want.dtype:
        return 1.0
    got, want = got.float(), want.float()
    bound = 2 * torch.finfo(_DTYPE).eps * want.abs() + torch.finfo(_DTYPE).tiny
    if not bool(((got - want).abs() <= bound).all()):
        return 1.0
    return float((got != want).float().mean())
