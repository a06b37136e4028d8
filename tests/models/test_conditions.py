"""Conditions in forwards and loops of one's own: in chunks, behind padding, rewound, beside something else. Against the oracle."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from plan_oracle import measured, outcome, run, watched
from random_plans import MARK, PLAIN, VOCABULARY, llama, vector

from steerfast import Condition, SteerfastError, Test, attach, steer

PROMPTS = [[5, *MARK, 7, 8, 9], [11, 12, *MARK]]
HOW = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
TESTS = [
    Test("projection", vector(2), 0, threshold=t, over=o)
    for t in (-99.0, 99.0)
    for o in ("last", "mean")
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: f"{test.over} {test.threshold}")
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_condition_behind_padding_in_chunks_is_that_of_the_whole(test, left):
    """Chunks may end anywhere up to the prompts' ends; columns of padding are no positions."""
    plan = steer(vector(1), 2.0, condition=Condition(test))
    prompts = [[5, *MARK, 7, 8, 9], [11, 12, 13, *MARK, 14]] if not left else PROMPTS
    following = [20, 21, 22]
    width = max(map(len, prompts))
    sides = [(width - len(row), 0) if left else (0, width - len(row)) for row in prompts]
    rows = [
        [0] * before + row + [0] * after
        for row, (before, after) in zip(prompts, sides, strict=True)
    ]
    ids = torch.tensor([row + following for row in rows])
    mask, width = (ids != 0).long(), ids.shape[1] - len(following)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    for cuts in ((width,), (1, width), (2, width - 1, width), (width, width + 1)):
        logits, cache, begun = [], None, 0
        with (
            torch.no_grad(),
            attach(llama()) as handle,
            handle.use(plan, prompt_lengths=[len(prompt) for prompt in prompts]),
        ):
            for until in (*cuts, ids.shape[1]):
                out = handle.model(
                    ids[:, begun:until],
                    attention_mask=mask[:, :until],
                    position_ids=places[:, begun:until],
                    past_key_values=cache,
                    use_cache=True,
                )
                logits.append(out.logits)
                cache, begun = out.past_key_values, until
        found = torch.cat(logits, 1)
        for row, prompt in enumerate(prompts):
            wanted, _ = outcome(PLAIN, prompt + following, prompt, plan)
            real = found[row][mask[row] != 0]
            torch.testing.assert_close(real.double(), wanted.double(), rtol=2e-4, atol=2e-3)


def test_a_chunk_across_the_prompts_end_is_refused_behind_a_cache():
    """Its later tokens depend on what its earlier ones decide, and a pass that reads ahead would lack the cache."""
    plan = steer(vector(1), 2.0, condition=Condition(TESTS[0]))
    ids = torch.tensor([[*PROMPTS[0], 20, 21, 22]])
    length = len(PROMPTS[0])
    with torch.no_grad(), attach(llama()) as handle:
        with handle.use(plan, prompt_lengths=[length]):
            whole = handle.model(ids).logits  # alone it is read twice, and right
            wanted, _ = outcome(PLAIN, ids[0].tolist(), PROMPTS[0], plan)
            torch.testing.assert_close(whole[0].double(), wanted.double(), rtol=2e-4, atol=2e-3)
            cache = handle.model(ids[:, :3], use_cache=True).past_key_values
            with pytest.raises(SteerfastError, match="after 3 in a cache; end a chunk where the"):
                handle.model(ids[:, 3:], past_key_values=cache)
        with handle.use(plan), handle.generating(ids[:, :length]) as loop:
            loop.step(3)
            handle.model(ids[:, :3])
            with pytest.raises(SteerfastError, match="end a chunk where the prompt ends"):
                loop.step(length)


def elsewhere(handle, way):
    """Something else runs between two forwards of a request."""
    ids = torch.tensor([[21, 22, 23, 24]])
    packed = {"position_ids": torch.tensor([[0, 1, 0, 1]]), "use_cache": False}
    other = steer(vector(4), 1.0, condition=Condition(TESTS[-1]))
    if way == "generate":
        return handle.model.generate(ids, **HOW)
    plan, known, more = {
        "forward of no plan": (None, {}, {}),
        "forward of a plan": (steer(vector(4), 1.0), {}, {}),
        "forward of a condition": (other, {"prompt_lengths": [4]}, {}),
        "packed rows": (other, {}, packed),
    }[way]
    with handle.use(plan, **known):
        return handle.model(ids, **more)


@pytest.mark.parametrize(
    "way",
    [
        "forward of no plan",
        "forward of a plan",
        "forward of a condition",
        "packed rows",
        "generate",
    ],
)
def test_what_a_condition_decided_is_known_or_an_error(way):
    """It is kept for the request that goes on; never NaN, nor another's."""
    plan = steer(vector(1), 2.0, condition=Condition(TESTS[0]))
    ids, length = torch.tensor([[*PROMPTS[0], 20, 21]]), len(PROMPTS[0])
    with torch.no_grad(), attach(llama()) as handle:
        with handle.use(plan, prompt_lengths=[length]):
            cache = handle.model(ids[:, :length], use_cache=True).past_key_values
            elsewhere(handle, way)
            with pytest.raises(
                SteerfastError, match=r"goes on at token 6 of row 0|cache is of other prompts"
            ):
                handle.model(ids[:, length:], past_key_values=cache)
        with handle.use(plan), handle.generating(ids[:, :length]) as loop:
            loop.step(length)
            cache = handle.model(ids[:, :length], use_cache=True).past_key_values
            elsewhere(handle, way)
            with pytest.raises(SteerfastError, match="another generation or forward ran between"):
                loop.step(2)


def test_a_change_between_two_forwards_keeps_what_a_condition_decided():
    plan, other = (steer(vector(n), 2.0, condition=Condition(TESTS[0])) for n in (1, 5))
    ids, length = torch.tensor([[*PROMPTS[0], 20, 21]]), len(PROMPTS[0])
    known = {"prompt_lengths": [length]}
    with torch.no_grad(), attach(llama()) as handle, handle.use(plan, **known) as use:
        first = handle.model(ids[:, :length], use_cache=True)
        use.change(other)
        rest = handle.model(ids[:, length:], past_key_values=first.past_key_values)
    right = watched(PLAIN, ids[0].tolist(), PROMPTS[0], plan, changes=[(length, other)])
    found = torch.cat([first.logits, rest.logits], 1)[0]
    torch.testing.assert_close(found.double(), right.logits.double(), rtol=2e-4, atol=2e-3)


def test_a_condition_whose_prompt_was_not_read_under_it_is_refused():
    mean, last = (steer(vector(1), 2.0, condition=Condition(TESTS[at])) for at in (1, 0))
    ids, length = torch.tensor([[*PROMPTS[0], 20, 21]]), len(PROMPTS[0])
    wanted, _ = outcome(PLAIN, ids[0].tolist(), PROMPTS[0], last)
    with torch.no_grad(), attach(llama()) as handle:
        for plan, seen in ((mean, 3), (mean, length), (last, length), (last, 3)):
            cache = handle.model(ids[:, :seen], use_cache=True).past_key_values
            with handle.use(plan, prompt_lengths=[length]):
                if plan is last and seen == 3:  # all that it reads is here
                    known = handle.model(ids[:, 3:length], past_key_values=cache)
                    found = handle.model(ids[:, length:], past_key_values=known.past_key_values)
                    torch.testing.assert_close(
                        found.logits[0].double(), wanted[length:].double(), rtol=2e-4, atol=2e-3
                    )
                    continue
                with pytest.raises(SteerfastError, match=f"goes on at token {seen} of row 0"):
                    handle.model(
                        ids[:, seen : length + 1 if seen == length else length],
                        past_key_values=cache,
                    )
        with (
            handle.use(last),
            handle.generating(ids[:, :length]) as loop,
            pytest.raises(SteerfastError, match="goes on behind all of its 6 columns"),
        ):
            loop.step(1, length)


@pytest.mark.parametrize("over", ["mean", "last"])
@pytest.mark.parametrize("bare", [True, False], ids=["forwards", "loop"])
def test_what_is_read_again_counts_once_in_a_condition(over, bare):
    """A cache that is rewound within the prompt, over and over, the last time to before its last token."""
    prompt, following = [5, 6, *MARK, 7, 8, 9, 10], [11, 12]
    ids, length = torch.tensor([[*prompt, *following]]), len(prompt)
    streams = {}
    run(PLAIN, prompt, lambda h, place: streams.setdefault(place, h))
    value = measured(Test("projection", vector(3), 0, over=over), streams, prompt)
    for below in (True, False):
        limit = value + (0.05 if below else -0.05)
        test = Test("projection", vector(3), 0, threshold=limit, over=over, below=below)
        plan = steer(vector(1), 2.0, condition=Condition(test))
        wanted, _ = outcome(PLAIN, ids[0].tolist(), prompt, plan)
        found, cache, seen = torch.zeros(ids.shape[1], VOCABULARY), None, 0
        known = {"prompt_lengths": [length]} if bare else {}
        with torch.no_grad(), attach(llama()) as handle, handle.use(plan, **known):
            loop = None if bare else handle.generating(ids[:, :length])
            with loop or nullcontext():
                for begun, until in ((0, 5), (1, 4), (2, 8), (7, 8), (8, 10)):
                    if cache is not None and begun < seen:
                        cache.crop(begun - seen)
                    if loop is not None:
                        loop.step(until - begun, begun)
                    out = handle.model(ids[:, begun:until], past_key_values=cache, use_cache=True)
                    cache, found[begun:until], seen = out.past_key_values, out.logits[0], until
        torch.testing.assert_close(found.double(), wanted.double(), rtol=2e-4, atol=2e-3)


OTHER_TOKENS = "reads another token at position 5 of the prompt of row 0"


@pytest.mark.parametrize("over", ["mean", "last"])
@pytest.mark.parametrize("inputs", ["ids", "embeddings"])
@pytest.mark.parametrize("bare", [True, False], ids=["forwards", "loop"])
def test_other_tokens_in_a_rewound_cache_are_another_prompt(over, inputs, bare):
    """Its verdict would be that of the first one; a prompt read anew, without the cache, is judged for itself."""
    first, second = [5, 6, *MARK, 7, 8, 9, 10], [5, 6, *MARK, 7, 20, 30, 40]
    test = Test("projection", vector(3), 0, threshold=-99.0, over=over)
    plan = steer(vector(1), 2.0, condition=Condition(test))
    known = {"prompt_lengths": [len(first)]} if bare else {}
    with torch.no_grad(), attach(llama()) as handle, handle.use(plan, **known):
        embed = handle.model.get_input_embeddings()

        def read(tokens, cache=None, seen=0):
            ids = torch.tensor([tokens[seen:]])
            if loop is not None:
                loop.step(ids.shape[1], seen)
            given = {"input_ids": ids} if inputs == "ids" else {"inputs_embeds": embed(ids)}
            return handle.model(**given, past_key_values=cache, use_cache=True)

        loop = None if bare else handle.generating(torch.tensor([first]))
        with loop or nullcontext():
            cache = read(first).past_key_values
            cache.crop(4 - len(first))
            cache = read(first, cache, 4).past_key_values  # the same is the same
            cache.crop(4 - len(first))
            with pytest.raises(SteerfastError, match=OTHER_TOKENS):
                read(second, cache, 4)
        if bare:
            wanted, _ = outcome(PLAIN, second, second, plan)
            found = read(second).logits[0]
            torch.testing.assert_close(found.double(), wanted.double(), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("read", [6, 8])
def test_other_tokens_are_found_after_plans_have_changed(read):
    """Of a prompt that was read in part or whole; what nobody has read may be anything."""
    test, prompt = Test("projection", vector(3), 0, threshold=-99.0), [5, 6, 7, 8, 9, 10, 11, 12]
    plans = [steer(vector(1), c, condition=Condition(test)) for c in (2.0, 3.0)]
    with attach(llama()) as handle:
        use = handle.use(plans[0], prompt_lengths=[8])
        with use, torch.inference_mode():
            cache = handle.model(torch.tensor([prompt[:read]]), use_cache=True).past_key_values
            cache.crop(5 - read)
            use.change(plans[1])
            with pytest.raises(SteerfastError, match=OTHER_TOKENS):
                handle.model(torch.tensor([[40, 41]]), past_key_values=cache)
            rest = prompt[5:read] + [30] * (8 - read)
            handle.model(torch.tensor([rest]), past_key_values=cache)
        with handle.use(plans[0], prompt_lengths=[2]), torch.no_grad():
            handle.model(torch.tensor([[40, 41]]))  # and outside of inference mode another prompt
