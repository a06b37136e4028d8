"""What fuzzed batches are made of: padding, masks as people write them, what is told of prompts, what a plan asks of them."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from fuzz_bench import Expect, Request, plans_of
from plan_oracle import selected
from row_oracle import idle
from torch import Tensor

from steerfast import AfterSequence, Plan, Positions

SIDES = ["left", "right", "both", "anywhere"]


class Padded(NamedTuple):
    """ids, mask [B, T]; places: [B, T] position ids."""

    ids: Tensor
    mask: Tensor
    places: Tensor

    def real(self, row: int, columns: Tensor) -> Tensor:
        """What stands in the columns of a row's tokens."""
        return columns[self.mask[row].bool()]


def padded(rng: random.Random, rows: list[list[int]], side: str) -> Padded:
    """Rows of any length, padded on the ``left``, the ``right``, ``both`` sides or ``anywhere``; the mask has ones."""
    width = max(map(len, rows)) + (0 if side in ("left", "right") else rng.randrange(3))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width)
    for number, row in enumerate(rows):
        spare = width - len(row)
        first = {"left": spare, "right": 0}.get(side, rng.randrange(spare + 1))
        columns = list(range(first, first + len(row)))
        if side == "anywhere":
            columns = sorted(rng.sample(range(width), len(row)))
        ids[number, columns] = torch.tensor(row)
        mask[number, columns] = 1
    mask = mask.long()
    return Padded(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))


def shown(rng: random.Random, mask: Tensor) -> Tensor | None:
    """A mask as somebody might write it: none where there is nothing to hide, any number but 0 for a token."""
    if bool(mask.all()) and rng.random() < 0.5:
        return None
    kind = rng.choice(["ones", "bool", "numbers", "float"])
    if kind == "numbers":
        many = torch.tensor([rng.choice([1, 2, 7, -1]) for _ in range(mask.numel())])
        return mask * many.reshape(mask.shape)
    return mask.bool() if kind == "bool" else mask.float() if kind == "float" else mask


def asks_end(plan: Plan | None) -> bool:
    """Whether a plan asks where its prompt ends, or what stands in it."""
    if plan is None:
        return False

    def asks(select: Any) -> bool:
        if isinstance(select, Positions):
            return any(b == "prompt_end" or (b or 0) < 0 for b in (select.start, select.stop))
        return isinstance(select, AfterSequence) or (isinstance(select, str) and select != "all")

    return bool(plan.schedule or plan.condition) or any(asks(one.select) for one in plan.terms)


def asks_ids(plan: Plan | None) -> bool:
    return plan is not None and any(isinstance(one.select, AfterSequence) for one in plan.terms)


def unsaid(requests: list[Request]) -> Expect:
    """What to expect of a forward where nobody says where prompts end, so that all its tokens are prompt."""
    expect: Expect = "answer"
    for one in requests:
        if one.plan is None or not asks_end(one.plan):
            continue
        terms = [term for term in one.plan.terms if not idle(term)]
        if terms == list(one.plan.terms) and all(term.select == "generated" for term in terms):
            return "refusal"
        rows = range(len(one.tokens))
        acts = any(selected(term.select, t, one.tokens) for term in terms for t in rows)
        if one.plan.condition or not acts:
            expect = "either"
    return expect


def told(rng: random.Random, requests: list[Request]) -> tuple[str, dict[str, Any]]:
    """What ``use`` is told of the prompts. Of nothing, all tokens are prompt."""
    kind = rng.choice(["lengths", "lengths", "prompts", "prompts", "nothing"])
    if kind == "lengths":
        lengths = [len(one.prompt) for one in requests]
        given = torch.tensor(lengths) if rng.random() < 0.3 else lengths
        return kind, {"prompt_lengths": given}
    if kind == "prompts":
        return kind, {"prompts": [one.prompt for one in requests]}
    return kind, {}


def one_or_many(rng: random.Random, requests: list[Request]) -> Any:
    """What ``use`` is given: a list, or one plan, which is then everybody's."""
    if rng.random() < 0.7:
        return plans_of(requests)
    for request in requests:
        request.plan = requests[0].plan
    return requests[0].plan


def quiet(rng: random.Random) -> Any:
    """Without gradients, either way."""
    return rng.choice([torch.no_grad, torch.inference_mode])()
