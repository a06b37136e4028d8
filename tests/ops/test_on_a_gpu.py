"""The CUDA and Triton kernels on a GPU, against the definition: a few rows for every way in which a row can be held.

`python -m gpu.conformance` in benchmarks/ has every case. Without a GPU, tests/ops/test_emulated_cuda.py and test_triton.py run the
same sources.
"""

from __future__ import annotations

from itertools import islice
from types import ModuleType

import pytest
import torch

from steerfast import ops, testing
from steerfast.ops import backends
from steerfast.ops import triton as triton_ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
# In registers, one to four vectors a thread; in shared memory; by rereading, aligned and not.
WIDTHS = (64, 4096, 8192, 11008, 33, 16390, 131072)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    found = next(status for status in backends.statuses() if status.name == request.param)
    if not found.available:
        pytest.skip(found.detail)
    return ops if request.param == "cuda" else triton_ops


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_conformance(backend: ModuleType, dtype: torch.dtype, width: int) -> None:
    few = 2 if width > 16390 else None  # of the widest only those with a bit of everything
    for case in islice(testing.cases([dtype], [width], [1, 5]), few):
        x, residual, weight, eps, steering, order = case.arguments_on("cuda")
        with torch.inference_mode():
            case.check(*backend.steer_add_rms_norm(x, residual, weight, eps, steering, order))
            case.check(backend.steer_add(x, residual, steering))
            case.check(*backend.steer_rms_norm(residual + x, weight, eps, steering, order))
            case.check(backend.steer(residual + x, steering))


@pytest.mark.parametrize("law", testing.EXACT_LAWS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_exact_laws(backend: ModuleType, law: str, dtype: torch.dtype) -> None:
    for width in (100, 576):
        testing.EXACT_LAWS[law](backend, dtype, width, device="cuda")


@pytest.mark.parametrize("width", [4096, 11008])
def test_a_captured_op_follows_its_table(backend: ModuleType, width: int) -> None:
    """What a replay steers by is what is in the tensors then."""
    case = next(testing.cases([torch.bfloat16], [width], [5]))
    x, residual, weight, eps, steering, order = case.arguments_on("cuda")
    slots = steering.row_slot.clone()
    with torch.inference_mode():

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return backend.steer_add_rms_norm(x, residual, weight, eps, steering, order)

        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            stream, normed = run()
        steering.row_slot.fill_(-1)
        graph.replay()
        assert torch.equal(stream, residual + x)
        steering.row_slot.copy_(slots)
        graph.replay()
        case.check(stream, normed)
