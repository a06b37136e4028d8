"""The sweep engine: rows shared until plans part, and the answers of one request at a time."""

from __future__ import annotations

import itertools
import random

import plan_oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import LAYERS, PLAIN, llama, plan, prompt, vector

from steerfast import Condition, First, Plan, Schedule, SteeringVector, Term, Test, attach, steer
from steerfast.errors import SteerfastError
from steerfast.sweep.engine import buckets, default_batch_tokens, sweep
from steerfast.sweep.forked import ForkedPass
from steerfast.sweep.readouts import Accuracy, NextAnswer, NextTokens
from steerfast.sweep.stops import Stop

MODEL = llama()


class Logits:
    """Everything: the logits of the last token, or of all of them in a row."""

    def __init__(self, head, last_only=True, longest=1):
        self.head, self.last_only, self.longest = head, last_only, longest
        self.width = head.out_features * (1 if last_only else longest)

    def __call__(self, normed, prompts):
        logits = self.head(normed)
        out = torch.full((len(prompts), self.longest, logits.shape[-1]), torch.nan)
        out[:, : logits.shape[1]] = logits
        return out.flatten(1)


def last_logits(head):
    return Logits(head)


def alone(plan, tokens, model=MODEL):
    """Logits [T, V] of one request: no batch, no fork, the patched model."""
    with attach(model) as handle:
        return one_of(handle, plan, tokens)


def one_of(handle, plan, tokens):
    with handle.use(plan, prompts=[tokens]), torch.inference_mode():
        return handle.model(torch.tensor([tokens])).logits[0].double()


def drawn(rng, plans=6, prompts=3):
    """Plans that know the mark in every prompt; none has a condition."""
    texts = [prompt(rng) for _ in range(prompts)]
    found = []
    while len(found) < plans:
        one = plan(rng, texts[0])
        if one is None or one.condition is None:
            found.append(one)
    mixed = [one for one in found if one is not None]
    # Plans with a common beginning: what a fork is for.
    if len(mixed) > 1:
        found.append(Plan((*mixed[0].terms, *steer(vector(1), 0.5, layers=[LAYERS - 1]).terms)))
        found.append(mixed[0])
    return found, texts


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=True))
def test_forked_answers_are_those_of_the_oracle(rng):
    plans, prompts = drawn(rng)
    expected = torch.stack(
        [
            torch.stack([plan_oracle.outcome(PLAIN, ids, ids, one)[0][-1] for ids in prompts])
            for one in plans
        ]
    )
    for tokens in (4096, 3 * max(map(len, prompts))):
        result = sweep(MODEL, plans, prompts, last_logits, batch_tokens=tokens)
        assert not result.isnan().any()
        torch.testing.assert_close(result, expected.double(), rtol=2e-4, atol=2e-4)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=True))
def test_every_token_of_every_plan_as_one_at_a_time(rng):
    """1e-5 of the logits' range in float32, and the same argmax wherever the first two are that far apart."""
    plans, prompts = drawn(rng)
    longest = max(map(len, prompts))
    result = sweep(MODEL, plans, prompts, lambda head: Logits(head, False, longest))
    with attach(MODEL) as handle:
        for (row, one), (column, tokens) in itertools.product(enumerate(plans), enumerate(prompts)):
            expected = one_of(handle, one, tokens)
            got = result[row, column].reshape(longest, -1)[: len(tokens)]
            bound = 1e-5 * float(expected.abs().max())
            assert float((got - expected).abs().max()) <= bound
            first = expected.topk(2).values
            clear = first[:, 0] - first[:, 1] > 2 * bound
            assert (got.argmax(-1) == expected.argmax(-1))[clear].all()


def test_rows_are_shared_up_to_the_steered_layer_and_again_up_to_the_next():
    one, other = vector(1), vector(2)
    term = Term(one, 1.0, layers=(0,))
    plans = [
        None,
        Plan((term,)),
        Plan((term, Term(other, 1.0, layers=(1,)))),
        Plan((term, Term(other, 2.0, layers=(1,)))),
        steer(other, 1.0, layers=[2]),
    ]
    tokens = [[1, 2, 3, 4]]
    forked = ForkedPass(MODEL, plans)
    forked.run(tokens, Logits(MODEL.lm_head), batch_tokens=4096)
    # Layer 0: one row. Layer 1: unsteered and steered at 0. Layer 2: unsteered, and three that part at 1.
    assert forked.layer_tokens == 4 * (1 + 2 + 4)
    flat = ForkedPass(MODEL, plans, forking=False)
    flat.run(tokens, Logits(MODEL.lm_head), batch_tokens=4096)
    assert flat.layer_tokens == 4 * 3 * len(plans)
    torch.testing.assert_close(flat.result, forked.result, rtol=1e-5, atol=1e-5)


def test_plans_that_do_the_same_share_all_and_those_that_differ_in_gain_do_not():
    same = steer(vector(1), 2.0, layers=[1])
    double = SteeringVector("double", {1: 2 * vector(1).at(1)})
    scheduled = steer(vector(1), 2.0, layers=[1], schedule=Schedule.table([0.5], -1))
    plans = [
        same,
        steer(double, 1.0, layers=[1]),
        scheduled,
        steer(vector(1), 0.0, layers=[1]),
        None,
    ]
    forked = ForkedPass(MODEL, plans)
    result = forked.run([[5, 6, 7]], Logits(MODEL.lm_head), batch_tokens=4096)[:, 0]
    assert forked.layer_tokens == 3 * (1 + 1 + 3)
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[3], result[4])
    assert not torch.equal(result[0], result[2])
    expected = alone(scheduled, [5, 6, 7])[-1]
    torch.testing.assert_close(result[2], expected, rtol=1e-5, atol=1e-5)


def test_selectors_that_cover_a_short_prompt_alike_share_its_row_only():
    """``first 4`` of a prompt of 4 tokens is all of it; of 6 tokens it is not."""

    plans = [steer(vector(1), 1.0, layers=[0]), steer(vector(1), 1.0, layers=[0], select=First(4))]
    short = ForkedPass(MODEL, plans)
    result = short.run([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], Logits(MODEL.lm_head), batch_tokens=99)
    assert torch.equal(result[0, 0], result[1, 0])
    assert not torch.equal(result[0, 1], result[1, 1])
    for column, tokens in enumerate([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]):
        expected = alone(plans[1], tokens)[-1]
        torch.testing.assert_close(result[1, column], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_causal_with_every_attention(attention):
    """Without its mask, eager attention would look ahead."""
    model = llama()
    model.set_attn_implementation(attention)
    prompts = [[3, 9, 27, 4], [8, 5], [8, 6, 40]]
    result = sweep(model, [None], prompts, lambda head: Logits(head, False, 4), batch_tokens=12)
    for column, tokens in enumerate(prompts):
        got = result[0, column].reshape(4, -1)[: len(tokens)]
        torch.testing.assert_close(got, alone(None, tokens), rtol=1e-5, atol=1e-5)


def test_running_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    plans = [steer(vector(1), c / 7, layers=[c % LAYERS]) for c in range(20)]
    prompts = [[1, 2, 3], [4, 5, 6]]
    expected = sweep(MODEL, plans, prompts, last_logits)
    real, sizes = Stop.arrive, []

    def limited(self, stream, normed, given):
        sizes.append(len(normed))
        if len(normed) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(self, stream, normed, given)

    monkeypatch.setattr(Stop, "arrive", limited)
    result = sweep(MODEL, plans, prompts, last_logits)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) > 5, "the limit was never met"

    def always(self, stream, normed, given):
        raise torch.OutOfMemoryError("one row is too many")

    monkeypatch.setattr(Stop, "arrive", always)
    with pytest.raises(torch.OutOfMemoryError):
        sweep(MODEL, plans, prompts, last_logits)


def test_other_runtime_errors_are_not_taken_for_memory(monkeypatch):
    def broken(self, stream, normed, given):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Stop, "arrive", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        sweep(MODEL, [None, steer(vector(1), layers=[1])], [[1], [2]], last_logits)


def test_buckets_hold_every_prompt_once_with_little_padding():
    rng = random.Random(5)
    lengths = [rng.randrange(1, 200) for _ in range(500)]
    made = buckets(lengths, 1024)
    assert sorted(number for bucket in made for number in bucket) == list(range(500))
    for bucket in made:
        padded = max(lengths[number] for number in bucket) * len(bucket)
        assert padded <= 1024
        assert padded * 15 <= sum(lengths[number] for number in bucket) * 16
    assert len(made) < 250, "prompts of near lengths run together"
    assert default_batch_tokens(MODEL) > 0


def test_progress_counts_every_pair_once():
    told = []
    plans = [steer(vector(1), c, layers=[1]) for c in (0.0, 1.0, 2.0)] + [None]
    sweep(MODEL, plans, [[1, 2], [3], [4, 5, 6]], last_logits, done=told.append)
    assert sum(told) == 12


def test_the_model_is_left_as_it_was():
    MODEL.train()
    before = {name: id(module.__dict__.get("forward")) for name, module in MODEL.named_modules()}
    sweep(MODEL, [None], [[1, 2]], last_logits)
    assert MODEL.training
    assert MODEL.model.layers[0].mlp.training
    after = {name: id(module.__dict__.get("forward")) for name, module in MODEL.named_modules()}
    assert before == after
    MODEL.eval()


def test_refusals():
    probe = Test("projection", vector(1), 0, threshold=0.0)
    conditional = steer(vector(1), layers=[1], condition=Condition((probe,)))
    with pytest.raises(ValueError, match="has a condition"):
        sweep(MODEL, [conditional], [[1]], last_logits)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sweep(MODEL, [None], [[1], []], last_logits)
    with pytest.raises(ValueError, match="0 plans"):
        sweep(MODEL, [], [[1]], last_logits)
    with pytest.raises(ValueError, match="hidden size"):
        sweep(MODEL, [steer(SteeringVector("w", {0: torch.ones(8)}))], [[1]], last_logits)
    with attach(MODEL), pytest.raises(SteerfastError, match="attached already"):
        sweep(MODEL, [None], [[1]], last_logits)
    hook = MODEL.model.layers[1].register_forward_hook(lambda *_: None)
    with pytest.raises(SteerfastError, match=r"layers\.1 carries hooks"):
        sweep(MODEL, [None], [[1]], last_logits)
    hook.remove()


def test_next_answer_reads_the_greedy_token_and_both_candidates():
    """By the caller's numbers: these prompts run in buckets of their own, the longest first."""
    prompts = [[3, 4, 5], [9, 8], [6], list(range(10, 30))]
    pairs = [(7, 8), (2, 1), (5, 30), (11, 3)]

    plans = [None, steer(vector(3), 4.0, layers=[0])]
    result = sweep(MODEL, plans, prompts, lambda head: NextAnswer(head, pairs))
    for row, one in enumerate(plans):
        for column, tokens in enumerate(prompts):
            chances = alone(one, tokens)[-1].log_softmax(-1)
            token, first, second = result[row, column].tolist()
            assert token == chances.argmax()
            assert [first, second] == pytest.approx(chances[list(pairs[column])].tolist(), abs=1e-4)


def test_next_tokens_counts_hits_token_by_token():
    prompts = [[3, 4, 5, 9, 11], [9, 8, 1], [2]]

    plans = [None, steer(vector(3), 1.0)]
    result = sweep(MODEL, plans, prompts, lambda head: NextTokens(head, prompts))
    for row, one in enumerate(plans):
        wanted = [0.0, 0.0, 0.0, 0.0]
        for tokens in prompts:
            chances = alone(one, tokens)[:-1].log_softmax(-1)
            for at, token in enumerate(tokens[1:]):
                wanted[0] += 1
                wanted[1] += int(chances[at].argmax() == token)
                wanted[2] += int(token in chances[at].topk(10).indices)
                wanted[3] += float(chances[at, token])
        assert result[row].sum(0).tolist() == pytest.approx(wanted, abs=1e-3)
        accuracy = Accuracy.of(result[row])
        assert accuracy.tokens == 6
        assert accuracy.loss == pytest.approx(-wanted[3] / 6, abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("text", "takes a list of prompts, got str"),
        (["text"], "a token id of prompt 0 is an integer, got 'text'"),
        ([[5], ["a"]], "a token id of prompt 1 is an integer, got 'a'"),
        ([[5], [1.5]], r"a token id of prompt 1 is an integer, got 1\.5"),
        ([[5], [True]], "a token id of prompt 1 is an integer, got True"),
        ([[5], [-1]], "prompt 1 has token ids -1 to -1; this model knows 0 to"),
        ([[5], [6, 10**6]], "prompt 1 has token ids 6 to 1000000"),
        ([[5], []], "prompt 1 has no tokens"),
        ([], "needs plans and prompts"),
    ],
    ids=range(9),
)
def test_what_is_no_prompt_is_refused_before_the_model_runs(prompts, message):
    """Ids that are no integers were cut to some, silently."""
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(MODEL, [None], prompts, lambda head: pytest.fail("this far"))


def test_prompts_as_a_tensor_are_its_rows():
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert torch.equal(
        sweep(MODEL, [None], ids, last_logits), sweep(MODEL, [None], ids.tolist(), last_logits)
    )
