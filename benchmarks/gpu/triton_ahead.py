"""Compiles what ``gpu.conformance --backend triton`` is going to launch, by several processes, into Triton's cache.

The offline compiler needs no GPU, so this runs while the GPU is used by others.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os

KINDS = ("bf16", "fp32")
FORMS = (("X", "NORM"), ("X",), ("NORM",), ())  # what a launch has: the four ops
Job = tuple[str, int, str, tuple[str, ...]]


def jobs(arch: str, widths: tuple[int, ...]) -> list[Job]:
    """arch, D, dtype of stream and weight, what the kernel leaves out."""
    found = []
    for width, dtype, has, reads in itertools.product(widths, KINDS, FORMS, (True, False)):
        without = tuple(part for part in ("X", "NORM") if part not in has)
        found.append((arch, width, dtype, without if reads else (*without, "READS")))
    return found


def build(job: Job) -> None:
    from gpu.triton_registers import Form, compiled

    arch, width, dtype, without = job
    compiled(arch, width, dtype, dtype, Form(without))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", action="store_true", help="one kernel: does it compile at all?")
    parser.add_argument("--arch", help="as sm_90; default: that of the GPU here")
    arguments = parser.parse_args()
    arch = arguments.arch or ("sm_90" if arguments.few else _arch())
    wanted = jobs(arch, (576,) if arguments.few else (576, 4096, 16384))
    if arguments.few:
        wanted = wanted[-1:]
    done = 0
    workers = 1 if arguments.few else max(1, min(12, (os.cpu_count() or 1) - 4, len(wanted)))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(build, wanted):
            done += 1
            print(f"so far: {done} of {len(wanted)} kernels compiled for {arch}", flush=True)


def _arch() -> str:
    import torch

    return "sm_{}{}".format(*torch.cuda.get_device_capability())


if __name__ == "__main__":
    main()
