"""A fuzz of steering: random plans through every way to run a model, against the oracle. Each trial follows from (seed, number)."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import fuzz_forwards
import fuzz_generate
import fuzz_together
import torch
from fuzz_bench import Bench, Refused

KINDS: dict[str, fuzz_together.Way] = {
    way.__name__: way
    for way in (
        fuzz_forwards.whole,
        fuzz_forwards.chunks,
        fuzz_forwards.packed,
        fuzz_forwards.loop,
        fuzz_generate.greedy,
        fuzz_generate.samples,
        fuzz_generate.beams,
        fuzz_generate.speculative,
        fuzz_generate.guidance,
        fuzz_generate.changing,
        fuzz_generate.behind_a_cache,
        fuzz_generate.turns,
        fuzz_generate.asking_again,
        fuzz_generate.continuous,
        fuzz_together.nested,
        fuzz_together.threads,
        fuzz_together.refusals,
    )
}
# How often each is drawn: what goes wrong most easily more, what takes long less.
OFTEN = dict.fromkeys(("whole", "chunks", "packed", "loop", "greedy"), 8)
OFTEN |= {"threads": 3, "continuous": 1}
DRAWN = [kind for kind in KINDS for _ in range(OFTEN.get(kind, 4))]
DTYPES = [torch.float32, torch.float64]  # the compiled kernels, and the reference
SHOWN = 20  # failures that a summary tells of


class Trial(NamedTuple):
    """refused, wrong: what it ended with; both empty where it was right. wrong begins with the kind of fault."""

    number: int
    kind: str
    dtype: torch.dtype
    refused: str
    wrong: str


@cache
def bench(dtype: torch.dtype) -> Bench:
    """Made once a process: trials leave nothing behind."""
    return Bench(dtype)


def trial(seed: int, number: int, kinds: list[str] | None = None) -> Trial:
    """The same for the same arguments, but for what threads do at once. kinds: those to draw from, all by default."""
    rng = random.Random(f"{seed}/{number}")
    kind, dtype = rng.choice(kinds or DRAWN), rng.choice(DTYPES)
    torch.manual_seed(number)
    refused = wrong = ""
    try:
        KINDS[kind](bench(dtype), rng)
    except Refused as error:
        refused = str(error)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            wrong = "".join(traceback.format_exception(error)[-6:])
    return Trial(number, kind, dtype, refused, wrong)


def trials(seed: int, first: int = 0, kinds: list[str] | None = None) -> Iterator[Trial]:
    """One after another, for ever."""
    number = first
    while True:
        yield trial(seed, number, kinds)
        number += 1


def plans(
    seconds: float,
    seed: int = 0,
    most: int | None = None,
    first: int = 0,
    kinds: list[str] | None = None,
) -> dict[str, Any]:
    """Trials for so many seconds, or ``most`` of them: how many by kind, how many of these were refused (as they should), and
    what was wrong, each with the command that runs that trial alone."""
    run, refused, failed = Counter[str](), Counter[str](), Counter[str]()
    found: list[str] = []
    begun = time.monotonic()
    for one in trials(seed, first, kinds):
        run[one.kind] += 1
        refused[one.kind] += bool(one.refused)
        if one.wrong:
            failed[one.kind] += 1
            again = f"python tests/fuzz.py --seed {seed} --trial {one.number}"
            again += f" --kinds {' '.join(kinds)}" if kinds else ""
            found.append(f"{again}\n  {one.kind}, {one.dtype}: {one.wrong}")
            if len(found) <= SHOWN:
                print(found[-1], flush=True)
        if sum(run.values()) == most or time.monotonic() - begun > seconds:
            break
    compared = sum((bench(dtype).compared for dtype in DTYPES), Counter[str]())
    return {
        "trials": sum(run.values()),
        "seed": seed,
        "first": first,
        "seconds": round(time.monotonic() - begun, 1),
        "by_kind": dict(sorted(run.items())),
        "refused": {kind: refused[kind] for kind in sorted(run)},
        "failed": dict(sorted(failed.items())),
        "positions": dict(compared),
        "found": found[:SHOWN],
    }
