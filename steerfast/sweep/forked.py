"""Many plans over the same prompts: layers below the first steered one run once, and again only where plans part.

At every site, plans that have done the same so far share one row of the batch. Where they part, the row is
copied for each of them, before the site's steering and after everything that leads there, attention or MLP
included. Runs transformers' own attention and MLP modules and this package's kernels, on a model that is not patched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from steerfast.decoders.find import find_decoder
from steerfast.decoders.layer_inputs import layer_inputs
from steerfast.decoders.look import look
from steerfast.decoders.survey import closed_sites
from steerfast.models.checks import check_decoder, check_peft
from steerfast.models.hand_over import steered
from steerfast.ops import backends
from steerfast.ops.implementations import implementation
from steerfast.ops.records import Steering
from steerfast.plans.plan import Plan
from steerfast.sweep.branches import Branch, Branches, RowRoute
from steerfast.sweep.stops import Given, check_unobserved, check_whole, stops


class Readout(Protocol):
    """What is wanted of each (plan, prompt): ``width`` numbers.

    last_only: only the last token of each prompt is read, so that the last layer's MLP runs for it alone.
    Called with the final normed stream [R, T or 1, D] and the prompt's number of each row; gives [R, width].
    """

    @property
    def last_only(self) -> bool: ...
    @property
    def width(self) -> int: ...
    def __call__(self, normed: Tensor, prompts: Sequence[int]) -> Tensor: ...


class ForkedPass:
    """A model and the plans to run it under.

    plans: Plans without conditions, or None for no steering.
    forking: False gives every plan a row of its own from the embedding on; for measurements.
    Raises SteerfastError for a model that ``attach`` would refuse, one that is attached, is spread over
    devices or whose layers carry hooks; ValueError for plans that do not fit it, or have conditions.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: Sequence[Plan | None],
        *,
        backend: str | None = None,
        forking: bool = True,
    ) -> None:
        self.decoder = find_decoder(model)
        check_decoder(self.decoder)
        check_peft(model)
        self.device, dtype = check_whole(self.decoder)
        if dtype is torch.float64 and backend in (None, "auto"):
            backend = "reference"
        self.ops = implementation(backends.resolve(backend, self.device))
        self.survey = look(self.decoder, self.ops)
        check_unobserved(self.decoder, self.survey)
        self.stops = stops(self.decoder, self.survey)
        self.forking = forking
        layers = len(self.decoder.layers)
        closed = closed_sites(self.survey)
        self.branches = Branches(plans, layers, self.decoder.hidden_size, self.device, closed)
        self.plans = tuple(range(len(plans)))
        self.layer_tokens = 0  # rows x tokens x layers that have been run, the work that was done

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        read: Readout,
        *,
        batch_tokens: int,
        done: Callable[[int], None] | None = None,
    ) -> Tensor:
        """[plans, prompts, read.width] float64 on the CPU.

        prompts: token ids, best of about one length; shorter ones are padded. batch_tokens: so many rows x
        tokens at once; halved whenever memory runs out. done: told how many more (plan, prompt) have been read.
        """
        self._read, self._done, self.batch_tokens = read, done, batch_tokens
        self.branches.begin(prompts)
        longest = max(self.branches.lengths)
        ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        inputs = layer_inputs(self.decoder, self.survey, ids.to(self.device))
        self.length, self._given = longest, Given.of_layers(self.decoder, inputs)
        shape = (len(self.plans), len(prompts), read.width)
        self.result = torch.full(shape, torch.nan, dtype=torch.float64)
        self._fork(0, [Branch(row, self.plans) for row in range(len(prompts))], inputs.stream)
        return self.result

    def _fork(self, at: int, rows: Sequence[Branch], stream: Tensor) -> None:
        """Give each group of plans that parts at a stop a row, then walk on in batches that fit.

        Rows that fork again later come last, in batches of their own: the others then run to the end
        without being taken apart.
        """
        tokens, later = stream.shape[1], [stop.site for stop in self.stops[at + 1 :]]
        done: list[tuple[int, Branch]] = []
        parting: list[tuple[int, Branch]] = []
        for index, row in enumerate(rows):
            for plans in self._split(row, at):
                again = len(plans) > 1 and self.branches.act(plans, later)
                (parting if again else done).append((index, Branch(row.prompt, plans)))
        size = max(1, self.batch_tokens // tokens)
        waiting = deque(
            each[start : start + size]
            for each in (done, parting)
            for start in range(0, len(each), size)
        )
        while waiting:
            batch = waiting.popleft()
            try:
                chosen = torch.tensor([index for index, _ in batch], device=self.device)
                self._walk(at, [row for _, row in batch], stream.index_select(0, chosen))
            except RuntimeError as error:
                if len(batch) == 1 or not _out_of_memory(error):
                    raise
                half = (len(batch) + 1) // 2
                self.batch_tokens = min(self.batch_tokens, half * tokens)
                waiting.extendleft((batch[half:], batch[:half]))

    def _walk(self, first: int, rows: Sequence[Branch], stream: Tensor) -> None:
        """From the steering at a stop to the read-out, or to the next fork."""
        shortened = stream.shape[1] < self.length
        route = self.branches.route(rows, self.length, shortened)
        stream, normed = self._steered(first, stream, route)
        for at in range(first + 1, len(self.stops)):
            stop = self.stops[at]
            if stop.reads_tokens:
                self.layer_tokens += stream.shape[0] * stream.shape[1]
            stream, branch = stop.arrive(stream, normed, self._given[stop.layer])
            if self._read.last_only and stop.last_token_next:
                stream = self._last(rows, stream)
                branch = None if branch is None else self._last(rows, branch)
                route = self.branches.route(rows, self.length, True)
            if any(len(self._split(row, at)) > 1 for row in rows):
                self._fork(at, rows, stop.sum(stream, branch))
                return
            stream, normed = self._steered(at, stream, route, branch)
        if self._read.last_only and stream.shape[1] == self.length:
            normed = self._last(rows, normed)
        values = self._read(normed, [row.prompt for row in rows]).double().cpu()
        for row, value in zip(rows, values, strict=True):
            self.result[list(row.plans), row.prompt] = value
        if self._done is not None:
            self._done(sum(len(row.plans) for row in rows))

    def _steered(
        self, at: int, stream: Tensor, route: RowRoute, branch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A stream (and the branch that it is waiting for) steered at a stop, and what the next part reads."""
        stop = self.stops[at]
        if branch is not None and stop.factor is not None:
            stream, branch = stop.sum(stream, branch), None
        norm = None if stop.norm is None else stop.norm.ready(stream)
        steering = self._steering(route, stop.site)
        stream, normed = steered(self.ops, stream, branch, steering, norm)
        return stream, stop.next_input(stream) if normed is None else normed

    def _split(self, row: Branch, at: int) -> list[tuple[int, ...]]:
        if self.forking:
            return self.branches.split(row, self.stops[at].site)
        return [(plan,) for plan in row.plans] if at == 0 else [row.plans]

    def _steering(self, route: RowRoute, site: int) -> Steering:
        table = self.branches.table
        return Steering(*route, table.site_records[site], table.reads, table.bank)

    def _last(self, rows: Sequence[Branch], values: Tensor) -> Tensor:
        """[R, T, D] -> [R, 1, D]: the last real token of each row."""
        lengths = self.branches.lengths
        at = torch.tensor([lengths[row.prompt] - 1 for row in rows], device=self.device)
        return values[torch.arange(len(rows), device=self.device), at][:, None].contiguous()


def _out_of_memory(error: RuntimeError) -> bool:
    """On a device, or in the CPU's allocator, which raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
