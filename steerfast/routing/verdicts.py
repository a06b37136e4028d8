"""Verdicts: the conditions of the requests in flight, measured and decided on the device, and kept there.

A seat is a place that a request holds: a row of a batch, or what a serving engine gave it. Its verdict is
1 (no condition, or it holds), 0, or NaN as long as its prompt has not been read: a row steered before its time
would be seen. Sums are float64, so that chunks of a prompt add up to what the whole gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.plans.condition import MAX_TESTS, Condition
from steerfast.routing.capture import capturing
from steerfast.routing.itinerary import NEVER
from steerfast.routing.prompt_tokens import PromptTokens
from steerfast.routing.route import Rows
from steerfast.table.entry import Entry

NOWHERE = -1  # the site of a test that is not there
SITE, KEY, COSINE, LAST, BELOW = range(5)
LENGTH, DECIDED_AT, ANY = range(3)


class Kept(NamedTuple):
    """What has been measured, and of which tokens."""

    sums: Tensor
    counted: Tensor
    verdict: Tensor
    read: Tensor | None


class Verdicts:
    """tests: [seats, 4, 5] int64 (site, bank row of the unit key, is cosine, over the last token, below).
    limits: [seats, 4] float64. about: [seats, 3] int64 (P, the site where it is decided, require any).
    sums: [seats, 4] float64. counted: [seats, 4] int64, before which position the prompt is in the sums: a token that is
    read again, as in a loop that was rewound, counts once. verdict: [seats] float32."""

    def __init__(self, seats: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        with torch.inference_mode(False):
            whole = {"dtype": torch.int64, "device": self.device}
            exact = {"dtype": torch.float64, "device": self.device}
            self.tests = torch.full((seats, MAX_TESTS, 5), NOWHERE, **whole)  # type: ignore[call-overload]
            self.about = torch.full((seats, 3), NOWHERE, **whole)  # type: ignore[call-overload]
            self.limits = torch.zeros(seats, MAX_TESTS, **exact)  # type: ignore[call-overload]
            self.sums = torch.zeros(seats, MAX_TESTS, **exact)  # type: ignore[call-overload]
            self.counted = torch.zeros(seats, MAX_TESTS, **whole)  # type: ignore[call-overload]
            self.verdict = torch.ones(seats, dtype=torch.float32, device=self.device)
        self._conditions: dict[int, Condition | None] = {}
        self._tokens = PromptTokens()

    @property
    def seats(self) -> int:
        return self.verdict.shape[0]

    def assign(
        self,
        requests: Sequence[tuple[Entry | None, int | None]],
        kept: Kept | None = None,
    ) -> None:
        """Seats 0, 1, ... get these requests (plan in the table, prompt length), undecided or, of the same conditions, with
        what ``keep`` returned; all others none."""
        conditions = [None if entry is None else entry.plan.condition for entry, _ in requests]
        if self._conditions or any(conditions):
            if self._conditions:
                self._write([(None, None)] * self.seats, 0)
            self._write(requests, 0)
        self._conditions = dict(enumerate(conditions)) if any(conditions) else {}
        if kept is not None:
            self._restore(kept)

    def seat(self, place: int, entry: Entry | None, length: int | None) -> None:
        """Give one seat its request, undecided; the others keep theirs."""
        condition = None if entry is None else entry.plan.condition
        if condition is not None or self._conditions.get(place) is not None:
            self._write([(entry, length)], place)
        self._conditions[place] = condition

    def copy_seat(self, source: int, target: int) -> None:
        """A request forked from another has read what that one has read."""
        with torch.inference_mode(False):
            self.sums[target] = self.sums[source]
            self.counted[target] = self.counted[source]
            self.verdict[target] = self.verdict[source]

    def grown(self, seats: int) -> Verdicts:
        """The same with more seats; captured graphs that read the old tensors must be captured again."""
        more = Verdicts(seats, self.device)
        more._conditions = self._conditions
        with torch.inference_mode(False):
            for name in ("tests", "about", "limits", "sums", "counted", "verdict"):
                getattr(more, name)[: self.seats] = getattr(self, name)
        return more

    def check_kept(self, entries: Sequence[Entry | None], known: bool) -> None:
        """SteerfastError where a plan's condition is a new one, for requests under way: their prompts have gone by. known:
        what is measured here is theirs."""
        if not known and any(conditions_of(entries)):
            raise SteerfastError(
                "another generation or forward ran between two steps of a generation whose plans have conditions, and what "
                "they decided is lost; run it before or after"
            )
        for place, entry in enumerate(entries):
            condition = None if entry is None else entry.plan.condition
            before = self._conditions.get(place)
            if condition is not None and (before is None or before.digest != condition.digest):
                raise SteerfastError(
                    "a plan with a condition cannot take another's place while a request is under way: its "
                    "prompt is not read again; keep the condition of the plan before, or start the request anew"
                )

    def keep(self) -> Kept:
        """What has been measured, for requests that go on under other plans."""
        read = self._tokens.numbers
        return Kept(
            self.sums.clone(),
            self.counted.clone(),
            self.verdict.clone(),
            None if read is None else read.clone(),
        )

    def read(self, like: Tensor, rows: Rows) -> None:
        """Note which tokens a forward shows to the conditions; ``PromptTokens.read`` says more. Not where a graph is
        captured: its replays judge anew."""
        if capturing():
            return
        decided = self.about[:, DECIDED_AT] != NOWHERE
        self._tokens.read(like, rows, torch.where(decided, self.about[:, LENGTH], 0))

    def check_read(self, positions: Tensor, real: Tensor | None, ends: Sequence[int]) -> None:
        """SteerfastError where rows go on behind what their conditions have not read: a prompt, or a part of one over which
        a test averages. Arguments as of ``reads_prompts``."""
        token = torch.ones_like(positions) if real is None else real
        begins = torch.where(token != 0, positions, NEVER).amin(-1).expand(len(ends))
        rows, end = slice(len(ends)), torch.tensor(ends, device=positions.device)
        averages = (self.tests[rows, :, SITE] != NOWHERE) & (self.tests[rows, :, LAST] == 0)
        gap = (averages & (self.counted[rows] < begins[:, None])).any(-1)
        lost = self.verdict[rows].isnan() & (begins < NEVER) & ((begins >= end) | gap)
        for row in lost.nonzero()[:1, 0].tolist():
            raise SteerfastError(
                f"a plan has a condition, and this forward goes on at token {int(begins[row])} of row {row}, but what the "
                "condition reads of the prompt before was not read under this use(), or is lost because something else ran; "
                "read the prompt from its beginning, and nothing in between"
            )

    def _restore(self, kept: Kept) -> None:
        """Put back what ``keep`` returned, where there is still a condition."""
        with torch.inference_mode(False):
            self.sums.copy_(kept.sums)
            self.counted.copy_(kept.counted)
            waiting = self.about[:, DECIDED_AT] != NOWHERE
            self.verdict.copy_(torch.where(waiting, kept.verdict, 1.0))
            self._tokens.numbers = None if kept.read is None else kept.read.clone()

    def _write(self, requests: Sequence[tuple[Entry | None, int | None]], first: int) -> None:
        count = len(requests)
        tests = np.full((count, MAX_TESTS, 5), NOWHERE)
        about, limits = np.full((count, 3), NOWHERE), np.zeros((count, MAX_TESTS))
        for row, (entry, length) in enumerate(requests):
            condition = None if entry is None else entry.plan.condition
            if condition is None or entry is None:
                continue
            assert length is not None  # an itinerary without it was refused
            about[row] = length, condition.decided_at, condition.require == "any"
            for place, (test, key) in enumerate(zip(condition.tests, entry.keys, strict=True)):
                flags = test.kind == "cosine", test.over == "last", test.below
                tests[row, place] = test.measured_at, key, *flags
                limits[row, place] = test.limit
        with torch.inference_mode(False):
            seats = slice(first, first + count)
            for tensor, values in (
                (self.tests, tests),
                (self.about, about),
                (self.limits, limits),
            ):
                tensor[seats].copy_(torch.from_numpy(values))
        self.reset(first, count)

    def reset(self, first: int = 0, count: int | None = None) -> None:
        """Forget what was measured in these seats (all)."""
        seats = slice(first, None if count is None else first + count)
        with torch.inference_mode(False):
            self.sums[seats] = 0.0
            self.counted[seats] = 0
            self._tokens.forget(seats)
            waiting = self.about[seats, DECIDED_AT] != NOWHERE
            self.verdict[seats] = torch.where(waiting, torch.nan, 1.0)

    def reset_where(self, fresh: Tensor | bool) -> None:
        """The same for all seats if ``fresh``, which may be known on the device alone: nobody waits for it."""
        if not isinstance(fresh, Tensor):
            if fresh:
                self.reset()
            return
        with torch.inference_mode(False):
            waiting = self.about[:, DECIDED_AT] != NOWHERE
            unread = torch.where(waiting, torch.nan, 1.0)
            for tensor, value in ((self.sums, 0.0), (self.counted, 0), (self.verdict, unread)):
                tensor.copy_(torch.where(fresh, value, tensor))

    def gain(self, base: Tensor, seat: Tensor) -> Tensor:
        """The gain of rows with their seats' verdicts in it."""
        return base * self.verdict[seat.clamp(min=0).long()]

    def measure(self, stream: Tensor, site: int, route: Rows, bank: Tensor) -> Tensor:
        """Read the prompt rows of ``stream`` at a site; returns the gains, with what is decided now.

        stream: [..., D], the rows of ``route``. Bank rows of keys are unit vectors.
        """
        with torch.no_grad():
            rows = stream.detach().reshape(-1, stream.shape[-1])
            seat, position = route.seat.clamp(min=0).long(), route.position.long()
            length = torch.where(route.seat >= 0, self.about[seat, LENGTH], NOWHERE)
            in_prompt, last = position < length, position == length - 1
            for place in range(MAX_TESTS):
                test = self.tests[:, place][seat]
                here = (test[:, SITE] == site) & torch.where(test[:, LAST] == 1, last, in_prompt)
                here &= position >= self.counted[seat, place]
                value = _value(rows, bank, test, here)
                where = seat, torch.full_like(seat, place)
                self.sums.index_put_(where, value, accumulate=True)
                until = torch.where(here, position + 1, 0)
                self.counted[:, place].scatter_reduce_(0, seat, until, "amax")
            read = torch.zeros_like(self.verdict).index_add_(0, seat, last.float()) > 0
            decided = read & (self.about[:, DECIDED_AT] == site) & self.verdict.isnan()
            held = _holds(self.tests, self.about, self.limits, self.sums)
            self.verdict.copy_(torch.where(decided, held, self.verdict))
            steered_now = (length > 0) & (position >= length - 1)
            return torch.where(steered_now, route.base * self.verdict[seat], route.gain)


def _value(rows: Tensor, bank: Tensor, test: Tensor, here: Tensor) -> Tensor:
    """What a test reads in each row, [N] float64; 0 where it does not read."""
    value = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    # Which rows are read is known on the CPU for free; on a GPU asking would wait for it, and a graph would keep the answer.
    asks = rows.device.type == "cpu" and not capturing()
    chosen = here.nonzero()[:, 0] if asks else slice(None)
    exact, key = rows[chosen].double(), bank[test[chosen, KEY].clamp(min=0)].double()
    dot = (exact * key).sum(-1)
    norm = torch.linalg.vector_norm(exact, dim=-1)
    cosine = torch.where(norm > 0, dot / torch.where(norm > 0, norm, 1.0), 0.0)
    value[chosen] = torch.where(test[chosen, COSINE] == 1, cosine, dot)
    return torch.where(here, value, 0.0)


def _holds(tests: Tensor, about: Tensor, limits: Tensor, sums: Tensor) -> Tensor:
    """1.0 for seats whose sums satisfy their conditions, else 0.0."""
    count = torch.where(tests[..., LAST] == 1, 1, about[:, LENGTH, None]).clamp(min=1)
    value = sums / count
    met = torch.where(tests[..., BELOW] == 1, value < limits, value > limits)
    there = tests[..., SITE] != NOWHERE
    every, some = (met | ~there).all(-1), (met & there).any(-1)
    return torch.where(about[:, ANY] == 1, some, every).to(torch.float32)


def conditions_of(entries: Sequence[Entry | None]) -> tuple[str, ...]:
    """What the conditions of rows decide, as digests; empty where there is none."""
    return tuple(
        "" if entry is None or entry.plan.condition is None else entry.plan.condition.digest
        for entry in entries
    )


def reads_prompts(positions: Tensor, real: Tensor | None, ends: Sequence[int]) -> tuple[bool, bool]:
    """(some row holds tokens of its prompt, some such row holds tokens behind it too).

    positions: [B or 1, T]. real: [B, T], 0 for padding, or None. ends: each row's P, 0 where nothing is decided.
    """
    where, end = positions.cpu(), torch.tensor(ends)[:, None]
    token = torch.ones(()) if real is None else real.cpu()
    prompt = ((where < end) & (token != 0)).any(-1)
    behind = ((where >= end) & (token != 0)).any(-1)
    return bool(prompt.any()), bool((prompt & behind).any())


def check_reads_all(seen: int) -> None:
    """SteerfastError where a forward that holds the end of a prompt and tokens behind it goes on after so many in a cache."""
    if seen > 0:
        raise SteerfastError(
            "a plan has a condition, which is decided at the prompt's end, and this forward holds the end of a prompt "
            f"and tokens behind it, after {seen} in a cache; end a chunk where the prompt ends"
        )
