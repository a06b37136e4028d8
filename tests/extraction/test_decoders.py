"""Extraction from decoders of every kind: means equal to what plain hooks see, one text at a time; prompts shared where that is right."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import tiny_decoder

from steerfast.decoders.find import find_decoder
from steerfast.extraction.samples import Sample
from steerfast.extraction.sharing import longest_shared
from steerfast.extraction.stream_means import stream_means

ALL = 2**63 - 1
# The tokens that a row of two continuations may have, by kind. Tiny models have windows of 4, too few to try it in.
KINDS = {
    "llama": ALL,
    "mistral": 0,
    "gemma2": 0,
    "gemma3_text": 0,
    "qwen3_next": 0,  # linear attention
    "mamba": 0,
    "jamba": 0,
    "lfm2": 0,  # convolutions
    "gpt2": ALL,  # learned positions, by position_ids
    "opt": ALL,
    "bloom": 0,  # distances in the row
    "mpt": 0,
    "falcon": ALL,
    "olmo2": ALL,
    "cohere": ALL,
    "gpt_oss": 0,
    "glm4": ALL,
    "mixtral": ALL,
    "granite": ALL,
    "phi": ALL,
}


def groups(rng, prompt, *pairs):
    """Two continuations of a prompt each, of these lengths; and pairs that have no beginning in common."""

    def tokens(count):
        return torch.randint(2, 128, (count,), generator=rng).tolist()

    made = []
    for first, second in pairs:
        start = tokens(prompt)
        made.append(
            (
                Sample(start + tokens(first), prompt, 1),
                Sample(start + tokens(second), prompt, -1),
            )
        )
    return [*made, (Sample([2, *tokens(9)], 1, 1), Sample([3, *tokens(11)], 1, -1))]


@torch.no_grad()
def alone(model, sample):
    """[L, D]: the mean over a sample's own tokens, of its text in a forward of its own."""
    found, decoder = [], find_decoder(model)
    hooks = [
        layer.register_forward_hook(
            lambda module, args, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in decoder.layers
    ]
    decoder.module(input_ids=torch.tensor([sample.tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)[:, 0, sample.first :].double().mean(1)


@pytest.mark.parametrize("name", KINDS)
def test_means_are_those_of_one_text_at_a_time(name):
    model = tiny_decoder(name)
    given = groups(torch.Generator().manual_seed(1), 9, (14, 3), (2, 6), (5, 5))
    given += groups(torch.Generator().manual_seed(2), 2, (1, 1))
    means = stream_means(model, given, "mean", batch_size=6)
    for side, mean in means.items():
        samples = [sample for group in given for sample in group if sample.side == side]
        wanted = torch.stack([alone(model, sample) for sample in samples]).mean(0)
        size = float(wanted.norm(dim=-1).max())
        torch.testing.assert_close(mean.mean(), wanted, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("name", KINDS)
def test_prompts_are_shared_where_a_row_may_hold_two_continuations(name):
    assert longest_shared(find_decoder(tiny_decoder(name))) == KINDS[name]


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss"])
def test_a_window_of_a_real_size_is_the_longest_row(name):
    model = tiny_decoder(name, sliding_window=24)
    assert longest_shared(find_decoder(model)) == 24
    rows = []
    find_decoder(model).module.register_forward_pre_hook(
        lambda module, args, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    start = list(range(10, 22))
    for first, second, shapes in ((6, 6, [(1, 24)]), (7, 6, [(2, 19)])):
        pair = (
            Sample(start + [30] * first, 12, 1),
            Sample(start + [40] * second, 12, -1),
        )
        rows.clear()
        means = stream_means(model, [pair], "mean")
        assert rows[-1:] == shapes
        for sample in pair:
            torch.testing.assert_close(
                means[sample.side].mean(), alone(model, sample), rtol=1e-5, atol=1e-5
            )


def test_a_text_longer_than_the_window_is_not_read_under_a_shared_mask():
    """Which says nothing of windows: long texts run apart from shared rows, even in one call."""
    model = tiny_decoder("mistral", sliding_window=8)
    pair = (Sample([5, 6, 7], 2, 1), Sample([5, 6, 8], 2, -1))
    long = tuple(Sample([start, *range(20, 50)], 1, side) for start, side in ((3, 1), (4, -1)))
    means = stream_means(model, [pair, long], "last", batch_size=16)
    for number, side in enumerate((1, -1)):
        ends = [
            alone(model, sample._replace(first=len(sample.tokens) - 1))
            for sample in (pair[number], long[number])
        ]
        torch.testing.assert_close(
            means[side].mean(), torch.stack(ends).mean(0), rtol=1e-5, atol=1e-5
        )
