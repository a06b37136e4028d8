"""The conformance suite on a GPU: ``python -m gpu.conformance --backend cuda|triton`` in benchmarks/.

Every case in float32, bfloat16 and float16, in the forms with and without norm, and every law; wide
rows (one per kernel of the library) besides. Prints one line per failure; fails if there is any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from steerfast import ops, testing
from steerfast.ops import triton as triton_ops
from steerfast.testing import EXACT_LAWS, FAR_LAWS, LAWS, Case

WIDE = (2048, 4096, 5120, 8192, 11008, 16384, 16390)  # a width for every way a row can be held
QUICK_WIDTHS = (7, 576, 4096, 16384)


def all_cases(quick: bool) -> Iterator[Case]:
    """The suite's, then wide rows; ``quick``: a few of each, for tools that slow every access down."""
    if quick:
        yield from testing.cases(testing.DTYPES, QUICK_WIDTHS, (3,), quick=True)
        return
    yield from testing.cases()
    yield from testing.cases(widths=WIDE, rows=(1, 33))


def check_case(case: Case, backend: ModuleType) -> None:
    x, residual, weight, eps, steering, order = case.arguments_on("cuda")
    case.check(*backend.steer_add_rms_norm(x, residual, weight, eps, steering, order))
    case.check(backend.steer_add(x, residual, steering))
    h = residual + x
    case.check(*backend.steer_rms_norm(h, weight, eps, steering, order))
    case.check(backend.steer(h, steering))
    if weight.dtype == x.dtype:
        backend.steer_add_rms_norm_(x, residual, weight, eps, steering, order)
        case.check(residual, x)


def attempts(backend: ModuleType, quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    for case in all_cases(quick):
        yield case.id, lambda case=case: check_case(case, backend)  # type: ignore[misc]
    if quick:
        return
    # Those of far numbers are not for CUDA: docs/operators.md, "Numbers at the edge".
    far = FAR_LAWS if backend is triton_ops else {}
    for name, law in {**LAWS, **EXACT_LAWS, **far}.items():
        for dtype in testing.DTYPES:
            for width in (7, 100, 576, 4096):
                yield (
                    f"{name} {dtype} D={width}",
                    lambda law=law, dtype=dtype, width=width: law(  # type: ignore[misc]
                        backend, dtype, width, device="cuda"
                    ),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "triton"), required=True)
    parser.add_argument("--quick", action="store_true", help="few cases, for compute-sanitizer")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU that torch can use")
    backend: ModuleType = triton_ops
    if arguments.backend == "cuda":
        backend = ops
        if not torch._C._dispatch_has_kernel_for_dispatch_key("steerfast::steer", "CUDA"):
            sys.exit("the CUDA library is not built or not loaded; see `steerfast env`")
    done = failed = 0
    with torch.inference_mode():
        for name, attempt in attempts(backend, arguments.quick):
            done += 1
            try:
                attempt()
                torch.cuda.synchronize()
            except (AssertionError, RuntimeError) as error:
                failed += 1
                print(f"FAILED {name}: {str(error).splitlines()[0]}", flush=True)
                if "CUDA error" in str(error):
                    break  # nothing after this would mean anything
    print(
        f"{arguments.backend} on {torch.cuda.get_device_name()}: {done - failed} of {done} passed"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
