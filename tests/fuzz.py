"""A fuzz of what the package promises: right, or refused.

    python tests/fuzz.py --seconds 60                        # another seed: --seed 5
    python tests/fuzz.py --seed 5 --trial 1234               # that one alone
    python tests/fuzz.py --only plans --kinds loop threads   # some ways to run a model

plans: random plans of all operators, through every way to run a model, against an oracle in float64
(``tests/shared/fuzz_plans.py``). readers: changed inputs of whatever reads what others wrote
(``tests/shared/fuzz_readers.py``). The summary, as JSON, ends the output; the exit status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import torch
from transformers.utils.logging import set_verbosity_error

PARTS = ["plans", "readers"]


def part(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    if name == "readers":
        from fuzz_readers import readers

        return readers(seconds, options.seed)
    import fuzz_plans

    first, most = options.first, options.trials
    if options.trial is not None:
        first, most = options.trial, 1
    return fuzz_plans.plans(seconds, options.seed, most, first, options.kinds)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="shared by the parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS, nargs="+")
    parser.add_argument("--trials", type=int, help="of plans: no more than so many")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial of plans")
    parser.add_argument("--trial", type=int, help="one trial of plans, by its number")
    parser.add_argument("--kinds", nargs="+", help="of trials of plans: these only")
    parser.add_argument("--out", type=Path, help="write the summary there")
    options = parser.parse_args()
    there = {name for name in PARTS if (Path(__file__).parent / f"shared/fuzz_{name}.py").exists()}
    wanted = options.only or [name for name in PARTS if name in there]
    if options.trial is not None:
        wanted = ["plans"]
    torch.set_num_threads(1)
    set_verbosity_error()
    warnings.simplefilter("ignore")  # of doses: any is drawn
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    begun, summary = time.monotonic(), {}
    for at, name in enumerate(wanted):
        left = options.seconds - (time.monotonic() - begun)
        summary[name] = part(name, options, left / (len(wanted) - at))
    text = json.dumps(summary, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)
    return int(any(one["found"] for one in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
