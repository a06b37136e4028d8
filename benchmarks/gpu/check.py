"""The stages of ``gpu_check.sh`` one after the other, within a deadline; what each gave is kept before the next begins.

Imports no torch: a machine where that fails is told so by the first stage, in the summary.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gpu.boxed import Box
from gpu.keeping import Keeping
from gpu.stages import STAGES, Stage

RESERVE = 6.0  # seconds before the deadline that no stage may have: ending one and writing the archive takes some
WORTH = 3.0  # with less than this left a stage is not begun


def run(stages: Sequence[Stage], keeping: Keeping, box: Box, dry: bool) -> bool:
    """All stages; whether every one passed. One that is a gate and fails is the last."""
    keeping.plan([stage.name for stage in stages])
    going: dict[str, Stage] = {}
    for stage in stages:
        if stage.background:
            box.start(stage, dry)
            going[stage.name] = stage
            continue
        for name in stage.after:
            if name in going:
                keeping.add(box.finish(going.pop(name)))
        outcome = box.run(stage, dry, every=keeping.write)
        keeping.add(outcome)
        print(outcome.line(), flush=True)
        if outcome.result == "failed":
            print(box.tail(stage), flush=True)
        if stage.gate and not outcome.fine:
            keeping.note(f"Stopped: nothing after {stage.name} would mean anything.")
            break
    for stage in going.values():
        keeping.add(box.finish(stage))
    return all(one.fine for one in keeping.outcomes)


def chosen(names: Sequence[str], stages: Sequence[Stage] = STAGES) -> list[Stage]:
    """The stages of these names, in the order of the list; all without any. SystemExit for a name that there is not."""
    unknown = [name for name in names if name not in {stage.name for stage in stages}]
    if unknown:
        known = ", ".join(stage.name for stage in stages)
        raise SystemExit(f"no stage {unknown[0]!r}; there are: {known}")
    wanted = {*names, *(name for stage in stages if stage.name in names for name in stage.after)}
    return [stage for stage in stages if not names or stage.name in wanted]


def main(given: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("deadline", type=float, help="seconds from now")
    parser.add_argument("out", type=Path, help="where gpu.tgz and summary.md are written")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE")
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, at sizes that say nothing"
    )
    arguments = parser.parse_args(given)
    picked = chosen(arguments.only, stages)
    dry = arguments.dry_run
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        keeping = Keeping(arguments.out, Path(folder), dry, again=bool(arguments.only))
        box = Box(Path(folder), arguments.deadline - RESERVE, WORTH, _surroundings(folder, dry))
        try:
            passed = run(picked, keeping, box, dry)
        except BaseException as error:
            keeping.note(f"Stopped by {type(error).__name__}.")
            raise
        finally:
            box.end_all()
            keeping.write()
    print((arguments.out / "summary.md").read_text(encoding="utf-8"))
    return 0 if passed else 1


def _surroundings(folder: str, dry: bool) -> dict[str, str]:
    """The environment of every stage: results go where they are kept, and say of which commit they are."""
    told = {"STEERFAST_RESULTS": f"{folder}/results", "TRITON_CACHE_DIR": f"{folder}.triton"}
    commit = Path(__file__).parents[2] / "COMMIT"  # of a bundle, which has no history
    if commit.exists():
        told["STEERFAST_COMMIT"] = commit.read_text().strip()
    if dry:
        told |= {"STEERFAST_DRY_RUN": "1", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
        told |= {"CUDA_VISIBLE_DEVICES": ""}
        told["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR", told["TRITON_CACHE_DIR"])
    return told


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
