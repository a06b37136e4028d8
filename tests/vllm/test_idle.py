"""What an engine with the plugin gives to those who ask for no steering, against one without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def asked(folder):
    """{engine: {how: its answers}}, each engine in a process of its own: a plugin cannot be taken away again."""
    engines = {
        "stock": {"VLLM_PLUGINS": ""},
        "exact": {"STEERFAST_MODE": "exact"},
        "fused": {"STEERFAST_MODE": "fused"},
    }
    found = {}
    for name, environment in engines.items():
        done = subprocess.run(
            [sys.executable, str(HERE / "ask.py"), str(folder)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_idle_engines_answer_as_stock_ones(asked, how):
    """exact: to the bit. fused: the same tokens, and logarithms of probabilities to 1e-4."""
    stock, exact, fused = (asked[name][how] for name in ("stock", "exact", "fused"))
    assert len(stock) == 5
    assert exact == stock
    for one, other in zip(fused, stock, strict=True):
        assert one["tokens"] == other["tokens"]
        for here, there in zip(one["logprobs"], other["logprobs"], strict=True):
            for token in here.keys() & there.keys():
                assert abs(here[token][1] - there[token][1]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_residual_is_vllms_own(dtype):
    """Bitwise, given equal inputs; the norm is that stream's, rounded once, and as near to vLLM's as roundings allow.

    Each rounding may err by u = eps / 2 of the value. Ours rounds the stream that it normalises and the
    result; vLLM's rounds before the weight and after it: 2u each, so 4u = 2 eps apart at the most.
    """
    from vllm import ir

    from steerfast import ops

    x, residual = (torch.randn(37, 256).to(dtype) for _ in range(2))
    weight = torch.randn(256).to(dtype)
    native = ir.ops.fused_add_rms_norm.impls["native"].impl_fn
    normed, stream = native(x.clone(), residual.clone(), weight, 1e-5)
    ours, halves = x.clone(), residual.clone()
    ops.add_rms_norm_(ours, halves, weight, 1e-5, "fp32")
    assert torch.equal(halves, stream)
    sums = 1e-6  # of float32, in an order of one's own
    assert_close(ours, normed, rtol=2 * torch.finfo(dtype).eps + sums, atol=sums)

    whole = stream.double()
    truth = weight.double() * whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + 1e-5)
    assert_close(ours.double(), truth, rtol=torch.finfo(dtype).eps / 2 + sums, atol=sums)
