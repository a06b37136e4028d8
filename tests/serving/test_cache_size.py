"""``generate_batch``'s cache: sized by the requests, capped, and right where it is far too small."""

from __future__ import annotations

import copy

import pytest
import torch
from batching_config import batching_config
from one_by_one import VOCABULARY, alone, prompt
from tiny_llama import tiny_llama

from steerfast import Condition, SteeringVector, Test, steer
from steerfast.serving import batch, cache_size, generate_batch
from steerfast.serving.cache_size import CacheSize, Length

D, LAYERS = 32, 2


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden=D, layers=LAYERS, vocabulary=VOCABULARY, heads=2, spread=0.3, seed=5)


@pytest.fixture
def managers(model, monkeypatch):
    """The managers that calls make, for a look at what they were given."""
    made = []
    make = model.continuous_batching_context_manager

    def kept(**given):
        made.append(given["continuous_batching_config"])
        return make(**given)

    monkeypatch.setattr(model, "continuous_batching_context_manager", kept, raising=False)
    return made


def plan(seed, **options):
    rng = torch.Generator().manual_seed(seed)
    directions = {at: torch.randn(D, generator=rng) for at in range(LAYERS)}
    return steer(SteeringVector(f"v{seed}", directions), 2.0, **options)


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([(3, 12)], 64, CacheSize(1, 1, 3)),  # 3 + 12 and one to spare: one block of 16
        ([(3, 13)], 64, CacheSize(2, 1, 3)),
        ([(100, 20)], 64, CacheSize(8, 1, 100)),  # alone it may be longer than the cap
        ([(5000, 20)], 64, CacheSize(314, 1, 2048)),  # a long prompt comes in chunks
        ([(1, 8)] * 4, 64, CacheSize(5, 4, 4)),
        ([(1, 8)] * 9, 64, CacheSize(5, 4, 4)),
        ([(1, 8), (20, 12), (1, 8)], 64, CacheSize(5, 2, 21)),  # 3 blocks and 1; 5 leave 15% free
    ],
)
def test_blocks_hold_the_longest_that_run_together(lengths, most, expected):
    assert cache_size.cache_size([Length(*one) for one in lengths], 16, most) == expected


def test_an_answer_without_a_length_ends(model, managers):
    """128 tokens, and no more memory than they need."""
    ids = [prompt(1, 4), prompt(2, 300)]
    answers = generate_batch(model, [(ids[0], plan(1)), (ids[1],)], progress=False)
    assert [one.tokens for one in answers] == [
        alone(model, ids[0], plan(1), 128),
        alone(model, ids[1], None, 128),
    ]
    (config,) = managers
    assert (config.num_blocks, config.max_requests_per_batch) == (4, 2)  # of 256: 1 + 2, one spare
    assert config.max_batch_tokens == 304


def test_more_than_the_cap_wait(model, managers, monkeypatch):
    """Eleven requests of a block each where the cap lets three of them run at once."""
    monkeypatch.setattr(cache_size, "MOST_TOKENS_CPU", 3 * 256)
    asked = [(prompt(n, 3 + n), plan(n), {"max_new_tokens": 3 + n % 4}) for n in range(11)]
    answers = generate_batch(model, asked, progress=False)
    assert managers[0].max_requests_per_batch == 3
    assert [one.tokens for one in answers] == [
        alone(model, ids, its, sampling["max_new_tokens"]) for ids, its, sampling in asked
    ]


@pytest.mark.parametrize("kind", ["all", "prompt", "generated", "condition"])
def test_thrown_out_and_computed_again(model, monkeypatch, kind):
    """Eight requests of 70 tokens through a cache of 96: it takes prompts that it cannot finish, throws them out, and
    reads them again with what they had said, which counts as said and not as asked."""
    from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

    thrown = []
    original = OffloadingManager.offload_requests

    def offload(self):
        before = len(self.scheduler.active_requests)
        done = original(self)
        thrown.append(before - len(self.scheduler.active_requests))
        return done

    monkeypatch.setattr(OffloadingManager, "offload_requests", offload)
    key = SteeringVector("key", {0: torch.ones(D)})
    options = {"select": kind}
    if kind == "condition":
        options = {"condition": Condition(Test("projection", key, 0, threshold=-100.0))}
    asked = [
        (prompt(n, 30), plan(n, **options) if n % 4 else None, {"max_new_tokens": 40})
        for n in range(8)
    ]
    config = batching_config(16, num_blocks=6, max_batch_tokens=64)
    given = copy.deepcopy(config)
    monkeypatch.setattr(batch, "sized_config", None)  # what the caller gives is used as it is
    answers = generate_batch(model, asked, progress=False, config=config)
    assert config == given
    assert sum(thrown) > 0
    for number, (ids, its, _) in enumerate(asked):
        assert answers[number].tokens == alone(model, ids, its, 40), number


def test_blocks_by_the_name_that_5_17_has_for_their_size(model, monkeypatch):
    """``block_size``; later versions have it too, deprecated and None."""
    import transformers

    wanted = cache_size.sized_config(model, [Length(300, 40)] * 3).num_blocks

    class Older:
        block_size = 256

    monkeypatch.setattr(transformers, "ContinuousBatchingConfig", Older)
    assert cache_size.sized_config(model, [Length(300, 40)] * 3).num_blocks == wanted
