"""Random plans against the oracle, in every way in which a model can be made to read and write tokens.

The oracle (``plan_oracle``) has no cache, no padding and no batch; here a request meets all of them.
"""

from __future__ import annotations

import inspect
import os

import pytest
import torch
from batching_config import batching_config
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from plan_oracle import outcome
from random_plans import LAYERS, PLAIN, VOCABULARY, llama, requests
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from steerfast import attach
from steerfast.serving import generate_batch

NEW = 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
SCORES = {"output_scores": True, "return_dict_in_generate": True}


def examples(number):
    return settings(
        max_examples=number * int(os.environ.get("STEERFAST_EXAMPLES", "1")),
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],  # shrinking takes minutes and finds nothing simpler
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture(scope="module")
def handle():
    with attach(llama(), slots=128) as handle:
        yield handle


def padded(rows, left):
    """(ids [B, T], mask [B, T]) of prompts of any length."""
    width = max(len(row) for row in rows)
    sides = [(width - len(row), 0) if left else (0, width - len(row)) for row in rows]
    ids = [torch.nn.functional.pad(torch.tensor(r), s) for r, s in zip(rows, sides, strict=True)]
    ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
    mask = [torch.nn.functional.pad(o, s) for o, s in zip(ones, sides, strict=True)]
    return torch.stack(ids), torch.stack(mask)


def close(found, expected):
    """Equal to float32's accuracy behind a few layers that steering may have blown up."""
    bound = 2e-4 * (1 + float(expected.abs().max()))
    assert torch.allclose(found, expected, atol=bound, rtol=0), (found - expected).abs().max()


def check_greedy(prompt, plan, tokens):
    """Every token is the one that the oracle would have taken, given those before it."""
    logits, _ = outcome(PLAIN, prompt + tokens, prompt, plan)
    for number, token in enumerate(tokens):
        line = logits[len(prompt) - 1 + number]
        assert line[token] >= line.max() - 2e-4 * (1 + float(line.abs().max())), (number, tokens)


def check_scores(prompt, plan, tokens, scores):
    """``scores`` [n, V], from which tokens were taken, are the oracle's logits there."""
    logits, _ = outcome(PLAIN, prompt + tokens, prompt, plan)
    close(scores, logits[len(prompt) - 1 : len(prompt) - 1 + len(tokens)])


@examples(120)
@given(
    batch=requests(3), more=st.lists(st.integers(1, 59), min_size=5, max_size=5), left=st.booleans()
)
def test_one_forward(handle, batch, more, left):
    """Prompts and what follows them at once, padded on either side: logits and every layer's stream."""
    rows = [prompt + more[: len(more) - number] for number, (prompt, _) in enumerate(batch)]
    ids, mask = padded(rows, left)
    given_prompts = [prompt for prompt, _ in batch]
    with torch.no_grad(), handle.use([plan for _, plan in batch], prompts=given_prompts):
        out = handle.model(
            ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            output_hidden_states=True,
        )
    for row, ((prompt, plan), tokens) in enumerate(zip(batch, rows, strict=True)):
        logits, streams = outcome(PLAIN, tokens, prompt, plan)
        real = mask[row].bool()
        close(out.logits[row][real], logits)
        for layer in range(LAYERS):  # the last one is recorded behind the final norm
            close(out.hidden_states[layer][row][real], streams[layer])


@examples(120)
@given(batch=requests(3), cached=st.booleans())
def test_generation_of_a_left_padded_batch(handle, batch, cached):
    ids, mask = padded([prompt for prompt, _ in batch], left=True)
    with handle.use([plan for _, plan in batch]):
        out = handle.model.generate(ids, attention_mask=mask, use_cache=cached, **GREEDY, **SCORES)
    scores = torch.stack(out.scores, 1)
    for row, (prompt, plan) in enumerate(batch):
        tokens = out.sequences[row, ids.shape[1] :].tolist()
        check_scores(prompt, plan, tokens, scores[row])


@examples(60)
@given(batch=requests(2), sampled=st.booleans())
def test_beams_and_samples_share_their_prompts_plan(handle, batch, sampled):
    ids, mask = padded([prompt for prompt, _ in batch], left=True)
    how = {"do_sample": True} if sampled else {"num_beams": 3, "length_penalty": 0.0}
    torch.manual_seed(0)
    with handle.use([plan for _, plan in batch]):
        out = handle.model.generate(
            ids, attention_mask=mask, **{**GREEDY, **SCORES, **how}, num_return_sequences=2,
            top_k=0, output_logits=sampled,
        )  # fmt: skip
    for row, sequence in enumerate(out.sequences):
        prompt, plan = batch[row // 2]
        tokens = sequence[ids.shape[1] :].tolist()
        if sampled:
            check_scores(prompt, plan, tokens, torch.stack(out.logits, 1)[row])
            continue
        logits, _ = outcome(PLAIN, prompt + tokens, prompt, plan)
        chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(
            1, torch.tensor(tokens)[:, None]
        )
        assert float(out.sequences_scores[row]) == pytest.approx(float(chosen.sum()), abs=5e-3)


@examples(60)
@given(batch=requests(1), helper=st.sampled_from(["same model", "other model", "lookup"]))
def test_speculative_decoding(handle, batch, helper):
    """Candidates are read many at a time, rejected, and the cache is cropped."""
    ((prompt, plan),) = batch
    how = {
        "same model": {"assistant_model": PLAIN},
        "other model": {"assistant_model": llama(4)},
        "lookup": {"prompt_lookup_num_tokens": 2},
    }[helper]
    with handle.use(plan):
        out = handle.model.generate(
            torch.tensor([prompt]), **{**GREEDY, "max_new_tokens": 6}, **how
        )
    check_greedy(prompt, plan, out[0, len(prompt) :].tolist())


@examples(60)
@given(batch=requests(2), chunk=st.integers(1, 4))
def test_chunked_prefill(handle, batch, chunk):
    ids, mask = padded([prompt for prompt, _ in batch], left=True)
    with handle.use([plan for _, plan in batch]):
        out = handle.model.generate(
            ids, attention_mask=mask, prefill_chunk_size=chunk, **GREEDY, **SCORES
        )
    for row, (prompt, plan) in enumerate(batch):
        tokens = out.sequences[row, ids.shape[1] :].tolist()
        check_scores(prompt, plan, tokens, torch.stack(out.scores, 1)[row])


@examples(60)
@given(
    batch=requests(2), chunks=st.lists(st.integers(1, 3), min_size=20, max_size=20), data=st.data()
)
def test_a_loop_of_ones_own_with_chunks_and_a_rewound_cache(handle, batch, chunks, data):
    ids, mask = padded([prompt for prompt, _ in batch], left=True)
    width = ids.shape[1]
    following = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    whole = torch.cat([ids, following], 1)
    whole_mask = torch.cat([mask, torch.ones_like(following)], 1)
    rewind = data.draw(st.integers(width, width + 3), "to")
    logits = torch.zeros(2, width + 4, VOCABULARY)
    with (
        torch.no_grad(),
        handle.use([plan for _, plan in batch]),
        handle.generating(ids, mask) as loop,
    ):
        cache = None

        def read(seen, until):
            nonlocal cache
            loop.step(until - seen, seen)
            out = handle.model(
                whole[:, seen:until],
                attention_mask=whole_mask[:, :until],
                position_ids=(whole_mask.cumsum(-1) - 1).clamp(min=0)[:, seen:until],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            logits[:, seen:until] = out.logits

        seen = 0
        for chunk in chunks:  # no chunk crosses the end of the prompt: a condition is decided there
            until = min(seen + chunk, width if seen < width else width + 4)
            if seen < until:
                read(seen, until)
            seen = until
        logits[:, rewind:] = 0
        cache.crop(rewind - width - 4)
        read(rewind, width + 4)
    for row, (prompt, plan) in enumerate(batch):
        expected, _ = outcome(PLAIN, prompt + following[row].tolist(), prompt, plan)
        close(logits[row, width - len(prompt) :], expected)


@pytest.mark.skipif(
    "cache_allocators" not in inspect.getsource(PagedAttentionCache),
    reason="this transformers keeps the blocks of its cache otherwise, and is refused",
)
@examples(15)
@given(batch=requests(5), data=st.data())
def test_continuous_batching(handle, batch, data):
    config = batching_config(16, num_blocks=64, max_batch_tokens=8)
    counts = [data.draw(st.integers(1, 5)) for _ in batch]
    asked = [(*one, {"max_new_tokens": n}) for one, n in zip(batch, counts, strict=True)]
    answers = generate_batch(handle, asked, progress=False, config=config)
    for (prompt, plan), count, answer in zip(batch, counts, answers, strict=True):
        assert len(answer.tokens) == count
        check_greedy(prompt, plan, answer.tokens)


@examples(60)
@given(batch=requests(1, averaging=False), data=st.data())
def test_a_given_cache(handle, batch, data):
    """Keys and values of the beginning, read under the same plan: what follows is what the whole gives."""
    ((prompt, plan),) = batch
    seen = data.draw(st.integers(1, len(prompt) - 1))
    ids = torch.tensor([prompt])
    with torch.no_grad(), handle.use(plan, prompts=[prompt]):
        cache = handle.model(ids[:, :seen], use_cache=True).past_key_values
    with handle.use(plan):
        out = handle.model.generate(ids, past_key_values=cache, **GREEDY, **SCORES)
    tokens = out.sequences[0, len(prompt) :].tolist()
    check_scores(prompt, plan, tokens, torch.stack(out.scores, 1)[0])
