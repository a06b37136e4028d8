"""What a fuzzed request is compared with: the oracle in float64, how far roundings may lead away from it, and what a refusal is."""

from __future__ import annotations

import os
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import plan_oracle
import random_plans
import torch
from random_plans import llama
from torch import Tensor

import steerfast
from steerfast import Plan, SteerfastError, attach

# What a stream's roundings are, of its greatest element: of float32; of float64 that of the norms, which transformers
# computes in float32, and of directions, which tables hold in it.
ROUNDING = 2.0**-24
FLOOR = {torch.float32: 3e-6, torch.float64: 1e-6}  # of what is compared
GROWTH = 24.0  # how many times what the oracle's shaken streams lead to
NEAR = {torch.float32: 2e-4, torch.float64: 2e-6}  # nearer to a threshold either side is right
LOST = 0.02  # where roundings grow beyond that part of the whole, nothing can be said

Expect = Literal["answer", "refusal", "either"]


class Wrong(AssertionError):
    """The package gave another value than the oracle, or refused or took what it should not."""


class Refused(Exception):
    """The package refused with its own error, and that was right."""


@dataclass
class Request:
    """A prompt, its plan, and the prompt with what follows it."""

    prompt: list[int]
    plan: Plan | None
    tokens: list[int]


def draw_prompt(rng: random.Random) -> list[int]:
    return random_plans.prompt(rng)


def ours(error: BaseException) -> bool:
    """Whether an error was raised by the package's own lines."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return os.path.dirname(steerfast.__file__) in last.filename


def beyond_limits(error: BaseException) -> bool:
    """Whether a plan by itself is larger than a table: its refusal is always right."""
    return isinstance(error, steerfast.errors.PlanTooLargeError) or "cut positions" in str(error)


@contextmanager
def asking(expect: Expect, what: str) -> Iterator[None]:
    """Around the package's part. What it raises becomes ``Refused``, or ``Wrong`` if it should have answered."""
    try:
        yield
    except (SteerfastError, ValueError, TypeError) as error:
        if not ours(error):
            raise
        if expect == "answer" and not beyond_limits(error):
            raise Wrong(f"{what}: refused without need: {type(error).__name__}: {error}") from error
        raise Refused(f"{type(error).__name__}: {error}") from error
    if expect == "refusal":
        raise Wrong(f"{what}: taken, but it should have been refused")


class Bench:
    """An attached model of a dtype, and the oracle's, which has the same weights in float64 and was never attached."""

    def __init__(self, dtype: torch.dtype, slots: int = 512) -> None:
        self.dtype = dtype
        self.plain = llama().double()
        self.twin, self.assistant = llama().to(dtype), llama(4).to(dtype)  # never attached
        self.handle = attach(llama().to(dtype), slots=slots)
        self.model: Any = self.handle.model
        self.compared: Counter[str] = Counter()  # positions: sure, near a threshold

    def close(self) -> None:
        self.handle.detach()

    def embedded(self, ids: Tensor) -> Tensor:
        """What ids are embedded as."""
        with torch.no_grad():
            return self.plain.get_input_embeddings()(ids).to(self.dtype)

    def oracle(self, request: Request, shake: bool = False, **more: Any) -> plan_oracle.Outcome:
        """Of all tokens of a request; ``shake``: with every stream rounded otherwise."""
        given = request.tokens, request.prompt, request.plan
        return plan_oracle.watched(self.plain, *given, **more, shake=ROUNDING if shake else 0.0)

    def plan(self, rng: random.Random, prompt: list[int], everywhere: bool = False) -> Plan | None:
        """everywhere: one that treats all tokens alike."""
        if not everywhere:
            return random_plans.plan(rng, prompt, jumps=True, most=4)
        terms = [random_plans.term(rng, True, "all") for _ in range(rng.randrange(1, 4))]
        return rng.choice([None, *[Plan(tuple(terms), rng.choice(["none", "shrink"]))] * 5])

    def requests(self, rng: random.Random, rows: int, behind: int, **more: Any) -> list[Request]:
        """Random ones, each with so many tokens behind its prompt."""
        made = []
        for _ in range(rows):
            prompt = draw_prompt(rng)
            plan = self.plan(rng, prompt, **more)
            made.append(Request(prompt, plan, prompt + tokens(rng, behind)))
        return made

    def check(
        self,
        request: Request,
        logits: Tensor,
        what: str,
        *,
        at: int = 0,
        streams: Sequence[Tensor] = (),
        through: Callable[[Tensor, bool], Tensor] = lambda logits, shaken: logits,
        **more: Any,
    ) -> None:
        """``logits`` [n, V], and ``streams`` [T, D] before each layer, are the oracle's from position ``at`` on.
        through: what was done to the logits, (shaken or not). more: places, changes of ``plan_oracle.watched``."""
        right, shaken = self.oracle(request, **more), self.oracle(request, True, **more)
        sure = (right.margin > NEAR[self.dtype]).long().cumprod(0).bool()
        there = slice(at, at + len(logits))
        one, other = through(right.logits, False), through(shaken.logits, True)
        self._near(logits, one[there], other[there], sure[there], f"{what}: logits", at)
        for layer, found in enumerate(streams):
            one, other = right.streams[layer], shaken.streams[layer]
            self._near(found, one, other, sure, f"{what}: stream before layer {layer}", 0)

    def _near(self, found: Tensor, one: Tensor, other: Tensor, sure: Tensor, what: str, at: int):
        size = 1.0 + one.abs().amax(-1)
        grown = (one - other).abs().amax(-1).cummax(0).values
        bound = FLOOR[self.dtype] * size + GROWTH * grown
        sure = sure & (bound < LOST * size)
        apart = (found.double() - one).abs().amax(-1)
        self.compared["sure"] += int(sure.sum())
        self.compared["near a threshold"] += int((~sure).sum())
        wrong = (~(apart <= bound) & sure).nonzero()[:, 0]
        if len(wrong):
            first = int(wrong[0])
            raise Wrong(
                f"{what}: position {at + first} is {float(apart[first]):.3g} from the oracle, bound {float(bound[first]):.3g}, "
                f"size {float(size[first]):.3g} ({len(wrong)} of {len(sure)} positions)"
            )


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1, 60) for _ in range(count)]


def plans_of(requests: Sequence[Request]) -> list[Plan | None]:
    return [request.plan for request in requests]
