"""The conformance suite on a GPU: ``python -m gpu.conformance --backend cuda|triton`` in benchmarks/.

cuda: every case in float32, bfloat16 and float16, wide rows (one for every way a row can be held) before all, every law, and
rows in batches of 1 to 600. triton: a few widths, with reads and without, since each takes a kernel to compile. The float64
answers are worked out on the CPU, by several processes at once. One line per failure; how many passed, again and again;
fails if any did. With ``--seconds`` it ends in time, and says how far it came.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from gpu import stand_in
from steerfast import testing
from steerfast.testing import EXACT_LAWS, LAWS, Case, suite

WIDE = (4096, 16384, 16390, 2048, 5120, 8192, 11008)  # a width for every way a row can be held
TRITON_WIDTHS = (576, 4096, 16384)
LAW_WIDTHS = (7, 100, 576, 4096)
KINDS = (torch.bfloat16, torch.float32, torch.float16)
BATCHES = (1, 2, 7, 131, 132, 133, 255, 256, 257, 599)
SAY_EVERY = 5.0  # seconds
MARGIN = 4.0  # of --seconds, for processes to come and go
Check = tuple[str, Callable[[Any], None]]


def check_case(case: Case, backend: Any) -> None:
    x, residual, weight, eps, steering, order = case.arguments_on(stand_in.DEVICE)
    case.check(*backend.steer_add_rms_norm(x, residual, weight, eps, steering, order))
    case.check(backend.steer_add(x, residual, steering))
    h = residual + x
    case.check(*backend.steer_rms_norm(h, weight, eps, steering, order))
    case.check(backend.steer(h, steering))
    if weight.dtype == x.dtype:
        backend.steer_add_rms_norm_(x, residual, weight, eps, steering, order)
        case.check(residual, x)


def check_batches(make: Callable[[], Case], backend: Any) -> None:
    """A row's bits are the same in a batch of 600 and in smaller ones."""
    case = make()
    x, residual, weight, eps, steering, order = case.arguments_on(stand_in.DEVICE)
    rows = torch.arange(600, device=x.device) % len(x)

    def of(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        theirs = steering._replace(
            row_slot=steering.row_slot[rows], row_gain=steering.row_gain[rows]
        )
        return backend.steer_add_rms_norm(x[rows], residual[rows], weight, eps, theirs, order)  # type: ignore[no-any-return]

    whole = of(rows)
    for count in BATCHES:
        for got, all_of_them in zip(of(rows[-count:]), whole, strict=True):
            same = torch.equal(testing.bits(got), testing.bits(all_of_them[-count:]))
            assert same, f"{case.id}: rows in a batch of {count} differ from those in one of 600"


def checks(kind: str, few: bool) -> list[Check]:
    """All there is to check, in order of how much it says: no row is made before it is asked for."""
    if kind == "triton":
        if few:
            makers = list(suite.makers(KINDS[1:2], quick=True))
        else:
            makers = list(suite.makers(KINDS[:2], TRITON_WIDTHS, (33,)))
        made = [*_of_cases(makers[: 2 if few else 6]), *_of_cases(makers[:6], without_reads)]
        return made[:3] if few else made
    if few:
        some = suite.makers(KINDS[:1], (64, 33), (3,))
        return [*_of_cases(itertools.islice(some, 2)), *_laws(1)]
    batches: list[Check] = []
    for dtype in KINDS:
        for width in (4096, 16384, 33):
            (make,) = itertools.islice(suite.makers([dtype], [width], [33]), 1)
            batches.append(
                (f"batches {dtype} D={width}", lambda b, make=make: check_batches(make, b))
            )  # type: ignore[misc]
    wide = _in_turn([suite.makers([dtype], WIDE, (33, 1)) for dtype in KINDS])
    usual = _in_turn([suite.makers([dtype]) for dtype in KINDS])
    return [*batches, *_of_cases(wide), *_of_cases(usual), *_laws(None)]


def without_reads(case: Case) -> Case:
    """Of a table that has no room for programs: other kernels run."""
    records = case.steering.records.clone()
    records[:, 2:] = 0
    steering = case.steering._replace(records=records, reads=case.steering.reads[:0])
    return Case(f"{case.id}, no reads", case.x, case.residual, case.weight, case.eps, steering, case.norm_order)  # fmt: skip


def _of_cases(
    makers: Iterable[Callable[[], Case]], change: Callable[[Case], Case] = lambda case: case
) -> Iterator[Check]:
    for make in makers:
        name = " ".join(map(str, getattr(make, "args", ())))
        yield name, lambda backend, make=make: check_case(change(make()), backend)  # type: ignore[misc]


def _laws(most: int | None) -> list[Check]:
    # Those of far numbers are not for CUDA: docs/operators.md, "Numbers at the edge".
    every = itertools.product({**LAWS, **EXACT_LAWS}.items(), KINDS, LAW_WIDTHS)
    return [
        (
            f"{name} {dtype} D={width}",
            lambda backend, law=law, dtype=dtype, width=width: law(  # type: ignore[misc]
                backend, dtype, width, device=stand_in.DEVICE
            ),
        )
        for (name, law), dtype, width in itertools.islice(every, most)
    ]


def _in_turn(groups: list[Iterator[Callable[[], Case]]]) -> Iterator[Callable[[], Case]]:
    """The first of every group, then the second of every group, and so on."""
    for together in itertools.zip_longest(*groups):
        yield from (one for one in together if one is not None)


def work(kind: str, few: bool, part: int, parts: int, end: float, told: Any) -> None:
    """Every ``parts``-th check, until it is ``end``; told: (name, what is wrong or None) of each, then None."""
    torch.set_num_threads(1)
    backend = stand_in.triton_library() if kind == "triton" else stand_in.cuda_library()
    with torch.inference_mode():
        for name, check in checks(kind, few)[part::parts]:
            if time.time() > end:
                break
            try:
                check(backend)
                stand_in.synchronize()
            except (AssertionError, RuntimeError) as error:
                told.put((name, f"{type(error).__name__}: {str(error).splitlines()[0]}"))
                if "CUDA error" in str(error):
                    break  # nothing after this would mean anything
            else:
                told.put((name, None))
    told.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "triton"), required=True)
    parser.add_argument("--few", action="store_true", help="a handful: does it run at all?")
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to stop")
    parser.add_argument("--processes", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 4)))
    arguments = parser.parse_args()
    stand_in.need_a_device()
    few, end = arguments.few, stand_in.end_of(arguments.seconds) - MARGIN
    parts = 1 if few else arguments.processes
    total, compiled = len(checks(arguments.backend, few)), _compiled()
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=work, args=(arguments.backend, few, part, parts, end, told), daemon=True)
        for part in range(parts)
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    passed = failed = ended = 0
    said = 0.0
    while ended < parts:
        try:
            one = told.get(timeout=0.5)
        except queue.Empty:
            dead = sum(worker.exitcode not in (None, 0) for worker in workers)
            late = time.time() > end + MARGIN / 2
            if late or ended + dead >= parts:
                failed += dead
                break
            continue
        if one is None:
            ended += 1
        elif one[1] is None:
            passed += 1
        else:
            failed += 1
            print(f"FAILED {one[0]}: {one[1]}", flush=True)
        if time.time() - said > SAY_EVERY:
            said = time.time()
            print(f"so far: {passed} of {total} passed, {failed} failed", flush=True)
    late = ", then time was up" if passed + failed < total else ""
    anew = f"; {_compiled() - compiled} kernels compiled" if arguments.backend == "triton" else ""
    print(f"so far: {passed} of {total} passed, {failed} failed{late}{anew}", flush=True)
    for worker in workers:
        worker.kill()
    sys.exit(failed > 0 or passed == 0)


def _compiled() -> int:
    """Kernels in Triton's cache."""
    return len(list(Path(os.environ.get("TRITON_CACHE_DIR", "nowhere")).rglob("*.cubin")))


if __name__ == "__main__":
    main()
