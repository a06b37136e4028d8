"""Many plans over the same prompts: layers below the first steered one run once, and again only where plans part.

At every site, plans that have done the same so far share one row of the batch. Where they part, the row is
copied for each of them, before the site's steering and after everything that leads there, attention or MLP
included. Runs transformers' own attention and MLP modules and this package's kernels, on a model that is not patched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steerfast.errors import SteerfastError
from steerfast.models.checks import check_decoder, check_peft, find_decoder
from steerfast.models.hand_over import unobserved
from steerfast.ops import backends
from steerfast.ops.implementations import implementation
from steerfast.ops.records import Steering
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_count, site_index
from steerfast.sweep.branches import Branch, Branches, RowRoute


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
        self.decoder, path = find_decoder(model)
        check_decoder(self.decoder, path)
        check_peft(model)
        _check_shows_all(self.decoder, path)
        weight = self.decoder.layers[0].input_layernorm.weight
        if weight.dtype is torch.float64 and backend in (None, "auto"):
            backend = "reference"
        self.ops = implementation(backends.resolve(backend, weight.device))
        self.device = weight.device
        self.forking = forking
        layers, width = len(self.decoder.layers), int(self.decoder.config.hidden_size)
        self.branches = Branches(plans, layers, width, self.device)
        self.sites, self.last_mid = site_count(layers), site_index("resid_mid", layers - 1)
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
        # Padding is on the right, where causal attention never looks back at it.
        stream = self.decoder.embed_tokens(ids.to(self.device))
        positions = torch.arange(longest, device=self.device)[None]
        self._attention = {
            "attention_mask": self._mask(stream[:1], positions),
            "position_embeddings": self.decoder.rotary_emb(stream[:1], position_ids=positions),
            "position_ids": positions,
            "past_key_values": None,
            "use_cache": False,
        }
        shape = (len(self.plans), len(prompts), read.width)
        self.result = torch.full(shape, torch.nan, dtype=torch.float64)
        self._fork(0, [Branch(row, self.plans) for row in range(len(prompts))], stream)
        return self.result

    def _fork(self, site: int, rows: Sequence[Branch], stream: Tensor) -> None:
        """Give each group of plans that parts here a row, then walk on in batches that fit.

        Rows that fork again later come last, in batches of their own: the others then run to the end
        without being taken apart.
        """
        tokens, later = stream.shape[1], range(site + 1, self.sites)
        done: list[tuple[int, Branch]] = []
        parting: list[tuple[int, Branch]] = []
        for index, row in enumerate(rows):
            for plans in self._split(row, site):
                again = len(plans) > 1 and self.branches.act(plans, later)
                (parting if again else done).append((index, Branch(row.prompt, plans)))
        size = max(1, self.batch_tokens // tokens)
        waiting = deque(
            each[at : at + size] for each in (done, parting) for at in range(0, len(each), size)
        )
        while waiting:
            batch = waiting.popleft()
            try:
                chosen = torch.tensor([at for at, _ in batch], device=self.device)
                self._walk(site, [row for _, row in batch], stream.index_select(0, chosen))
            except RuntimeError as error:
                if len(batch) == 1 or not _out_of_memory(error):
                    raise
                half = (len(batch) + 1) // 2
                self.batch_tokens = min(self.batch_tokens, half * tokens)
                waiting.extendleft((batch[half:], batch[:half]))

    def _walk(self, first: int, rows: Sequence[Branch], stream: Tensor) -> None:
        """From the steering at site ``first`` to the read-out, or to the next fork."""
        last_only = self._read.last_only
        length = self._attention["position_ids"].shape[1]
        route = self.branches.route(rows, length, last_only and first >= self.last_mid)
        norm = self._norm(first)
        stream, normed = self.ops.steer_rms_norm(
            stream, norm.weight, norm.variance_epsilon, self._steering(route, first)
        )
        for site in range(first + 1, self.sites):
            branch = self._branch(site, normed)
            if last_only and site == self.last_mid:
                stream, branch = self._last(rows, stream), self._last(rows, branch)
                route = self.branches.route(rows, length, True)
            if any(len(self._split(row, site)) > 1 for row in rows):
                self._fork(site, rows, stream + branch)
                return
            norm = self._norm(site)
            stream, normed = self.ops.steer_add_rms_norm(
                branch, stream, norm.weight, norm.variance_epsilon, self._steering(route, site)
            )
        values = self._read(normed, [row.prompt for row in rows]).double().cpu()
        for row, value in zip(rows, values, strict=True):
            self.result[list(row.plans), row.prompt] = value
        if self._done is not None:
            self._done(sum(len(row.plans) for row in rows))

    def _split(self, row: Branch, site: int) -> list[tuple[int, ...]]:
        if self.forking:
            return self.branches.split(row, site)
        return [(plan,) for plan in row.plans] if site == 0 else [row.plans]

    def _branch(self, site: int, normed: Tensor) -> Tensor:
        """The output of attention or MLP, which arrives at a site."""
        index, is_post = divmod(site - 1, 2)
        layer = self.decoder.layers[index]
        if is_post:
            return layer.mlp(normed)  # type: ignore[no-any-return]
        self.layer_tokens += normed.shape[0] * normed.shape[1]
        branch, _ = layer.self_attn(hidden_states=normed, **self._attention)
        return branch  # type: ignore[no-any-return]

    def _norm(self, site: int) -> Any:
        """The norm that reads the stream behind a site."""
        index, is_mid = divmod(site, 2)
        layers = self.decoder.layers
        if is_mid:
            return layers[index].post_attention_layernorm
        return self.decoder.norm if index == len(layers) else layers[index].input_layernorm

    def _steering(self, route: RowRoute, site: int) -> Steering:
        table = self.branches.table
        return Steering(*route, table.site_records[site], table.reads, table.bank)

    def _last(self, rows: Sequence[Branch], values: Tensor) -> Tensor:
        """[R, T, D] -> [R, 1, D]: the last real token of each row."""
        lengths = self.branches.lengths
        at = torch.tensor([lengths[row.prompt] - 1 for row in rows], device=self.device)
        return values[torch.arange(len(rows), device=self.device), at][:, None].contiguous()

    def _mask(self, like: Tensor, positions: Tensor) -> Any:
        """Causal, in the form that this model's attention wants; often None."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=like,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )


def _check_shows_all(decoder: Any, path: str) -> None:
    """SteerfastError where running the parts one by one would leave something out."""
    places = {parameter.device for parameter in decoder.parameters()}
    if len(places) > 1 or torch.device("meta") in places:
        raise SteerfastError(
            f"a forked pass needs the model on one device, and {path.rstrip('.') or 'it'} is on "
            f"{', '.join(sorted(map(str, places)))}; load it without device_map"
        )
    for name, part in _stood_in_for(decoder):
        if not unobserved(part):
            raise SteerfastError(
                f"{path}{name} carries hooks, which a forked pass would not call; remove them first"
            )


def _stood_in_for(decoder: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose own ``forward`` is not called."""
    yield "norm", decoder.norm
    for index, layer in enumerate(decoder.layers):
        yield f"layers.{index}", layer
        yield f"layers.{index}.input_layernorm", layer.input_layernorm
        yield f"layers.{index}.post_attention_layernorm", layer.post_attention_layernorm


def _out_of_memory(error: RuntimeError) -> bool:
    """On a device, or in the CPU's allocator, which raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
