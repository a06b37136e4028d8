"""What every decoder is asked, one function each: attached, it is the model that it was, or the one that hooks make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hooked_decoder import Act, Acts, hooked, layers_of, plans_of
from torch import Tensor, nn

from steerfast import SteerfastError, attach
from steerfast.decoders import find_decoder
from steerfast.extraction.samples import Sample
from steerfast.extraction.stream_means import stream_means
from steerfast.sweep.forked import ForkedPass

LAYERS = 4
ALONE = ("rwkv",)  # which mixes the rows of a batch behind its state, and knows no padding
CLOSE = 1e-5  # of the largest number, in float32


class NotOffered(Exception):
    """transformers does not do that with this model, or this package says that it does not."""


class Case(NamedTuple):
    """A model, its layers, and the part of each that reads the stream between its steps; None where there is no such. alone:
    it takes one prompt at a time, without padding."""

    model: Any
    layers: list[nn.Module]
    mid: list[str | None]
    alone: bool = False

    def reader(self, layer: nn.Module, index: int) -> nn.Module:
        return layer.get_submodule(str(self.mid[index]))

    @property
    def width(self) -> int:
        return int(find_decoder(self.model).hidden_size)


def case_of(model: Any) -> Case:
    with attach(model) as handle:
        found = handle.survey.layers
    mid = [
        None
        if one.wiring is None or len(one.wiring.steps) < 2
        else one.wiring.steps[1].before or one.wiring.steps[1].body
        for one in found
    ]
    return Case(model, layers_of(model, LAYERS), mid, model.config.model_type in ALONE)


def prompts(rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """(ids, mask) [rows, length]; the first is padded on the left."""
    rng = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(2, 128, (rows, length), generator=rng), None
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    ids[0, :2] = 0
    return ids, mask


def acts_of(case: Case, width: int, *, when: bool = False) -> list[Acts]:
    """A plan for each of three rows: many sites and operators. when: some for prompt or generated tokens alone."""
    rng = torch.Generator().manual_seed(2)

    def random() -> Tensor:
        return torch.randn(width, generator=rng)

    last = len(case.layers) - 1
    middle = [layer for layer in range(last + 1) if case.mid[layer] is not None]
    prompt, generated = ("prompt", "generated") if when else ("all", "all")
    first: list[Act] = [
        Act("add", 0, random(), 0.3),
        Act("add", 1, random(), -0.5, select=generated),
        Act("add", last, random(), 0.4),
    ]
    second = [
        Act("clamp", 1, random(), 1.5),
        Act("ablate", last - 1, random(), select=prompt),
        Act("add", last - 1, random(), 0.2),
    ]
    third = [
        Act("add", 0, random(), 0.5, "resid_pre"),
        Act("clamp", last, random(), -0.7, select=generated),
    ]
    if middle:
        first.append(Act("add", middle[-1], random(), 0.4, "resid_mid"))
        second.append(Act("ablate", middle[0], random(), 0.0, "resid_mid"))
        third.append(Act("add", middle[len(middle) // 2], random(), -0.3, "resid_mid", prompt))
    return [first, second, third]


def batches(case: Case, rows: list[Acts]) -> Iterator[tuple[Tensor, Tensor, list[Acts]]]:
    """Prompts, their mask and what happens to them: all in one batch, if that can be."""
    ids, mask = prompts()
    if not case.alone:
        yield ids, mask, rows
        return
    for row, acts in enumerate(rows):
        yield ids[row : row + 1], torch.ones_like(mask[:1]), [acts]


@torch.no_grad()
def logits(model: Any, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, **more).logits


def assert_close(got: Tensor, want: Tensor, real: Tensor, relative: float = CLOSE) -> None:
    """At real tokens; what a model makes of padding is its own affair."""
    assert got.dtype == want.dtype
    got, want = got[real != 0], want[real != 0]
    assert bool(want.isfinite().all())
    worst = float((got.double() - want.double()).abs().max() / want.double().abs().max())
    assert worst <= relative, worst


def idle_bitwise(case: Case, near: float = CLOSE) -> None:
    """Where every norm is the model's own, so is every bit."""
    ids, mask = prompts()
    want = logits(case.model, ids, mask)
    with attach(case.model):
        hooks = [
            part.register_forward_hook(lambda *seen: None)
            for layer in case.layers
            for part in [layer, *layer.children()]
        ]
        try:
            got = logits(case.model, ids, mask)
        finally:
            for hook in hooks:
                hook.remove()
        assert_close(logits(case.model, ids, mask), want, mask, near)
    assert torch.equal(got, want)
    assert torch.equal(logits(case.model, ids, mask), want)


def steered(case: Case) -> None:
    """A plan for each row, at many sites, by many operators, in a batch with padding: what hooks do."""
    for ids, mask, rows in batches(case, acts_of(case, case.width)):
        plain = logits(case.model, ids, mask)
        with hooked(case.model, case.layers, rows, mask, case.reader):
            want = logits(case.model, ids, mask)
        assert all(float((a - b)[-1].abs().max()) > 0.01 for a, b in zip(want, plain, strict=True))
        with attach(case.model) as handle, handle.use(plans_of(rows)):
            got = logits(case.model, ids, mask)
        assert_close(got, want, mask)


def generated(model: Any, ids: Tensor, mask: Tensor, **more: Any) -> Any:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    settings |= {"return_dict_in_generate": True, **more}
    return model.generate(ids, attention_mask=mask, **settings)


def greedy(case: Case, **more: Any) -> None:
    """With a cache, and plans for prompt or generated tokens alone: the tokens of hooks, and their logits."""
    for batch in batches(case, acts_of(case, case.width, when=True)):
        _greedy(case, *batch, **more)


def _greedy(case: Case, ids: Tensor, mask: Tensor, rows: list[Acts], **more: Any) -> None:
    try:
        plain = generated(case.model, ids, mask, **more).sequences
    except (AttributeError, TypeError, ValueError) as error:
        raise NotOffered(f"{type(error).__name__}: {error}") from error
    with hooked(case.model, case.layers, rows, mask, case.reader):
        want = generated(case.model, ids, mask, **more)
    with attach(case.model) as handle, handle.use(plans_of(rows)):
        got = generated(case.model, ids, mask, **more)
    for ours, theirs in zip(got.logits, want.logits, strict=True):
        assert_close(ours, theirs, torch.ones(len(ours)))
    assert torch.equal(got.sequences, want.sequences)
    with attach(case.model) as handle, handle.use(plans_of([*rows[:1], *[[]] * (len(ids) - 1)])):
        alone = generated(case.model, ids, mask, **more).sequences
    assert torch.equal(alone[1:], plain[1:])


def chunked(case: Case) -> None:
    """The same with a prompt that is read in parts."""
    greedy(case, prefill_chunk_size=3)


def closed(case: Case) -> None:
    """No ``resid_mid`` where there is none, and why."""
    width = case.width
    with attach(case.model) as handle:
        for layer, name in enumerate(case.mid):
            act = Act("add", layer, torch.ones(width), 1.0, "resid_mid")
            if name is not None:
                handle.use(plans_of([[act]])[0]).close()
                continue
            with pytest.raises((ValueError, SteerfastError), match=f"resid_mid.*layer {layer}"):
                handle.use(plans_of([[act]])[0])


class _LastToken:
    """A read-out of the sweep engine: the normed stream of each prompt's last token."""

    last_only = True

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, normed: Tensor, prompts: Any) -> Tensor:
        return normed[:, -1]


def sweep(case: Case) -> None:
    """Many plans in one forked pass are each plan by itself, prompt by prompt."""
    rows = acts_of(case, case.width)
    plans = [*plans_of(rows), None]
    asked = [[5, 6, 7, 8, 9], [9, 3, 4, 100], [20, 21, 22, 23, 24]]
    try:
        run = ForkedPass(case.model, plans)
        got = run.run(asked, _LastToken(case.width), batch_tokens=16)
    except SteerfastError as error:
        raise NotOffered(str(error)) from error
    decoder = find_decoder(case.model).module
    with attach(case.model) as handle:
        for number, plan in enumerate(plans):
            for at, prompt in enumerate(asked):
                with handle.use(plan), torch.no_grad():
                    want = decoder(input_ids=torch.tensor([prompt]), use_cache=False)[0][0, -1]
                assert_close(got[number, at][None], want.double()[None], torch.ones(1))


def extraction(case: Case) -> None:
    """Means over pairs that begin alike, and over texts of several lengths, are those of each text alone."""
    pairs = [((5, 6, 7, 8, 9), (5, 6, 7, 10)), ((11, 12, 13), (11, 12, 14, 15, 16))]
    groups = [(Sample(a, 2, 1), Sample(b, 2, -1)) for a, b in pairs]
    got = stream_means(case.model, groups, "mean")
    for side, texts in ((1, [a for a, _ in pairs]), (-1, [b for _, b in pairs])):
        want = torch.stack([_streams(case, text)[:, 2:].mean(1) for text in texts]).mean(0)
        assert_close(got[side].mean(), want, torch.ones(len(want)))


@torch.no_grad()
def _streams(case: Case, tokens: tuple[int, ...]) -> Tensor:
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out: found.append((out if isinstance(out, Tensor) else out[0])[0])
        )
        for layer in case.layers
    ]
    find_decoder(case.model).module(input_ids=torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).double()
