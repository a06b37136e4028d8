"""Conditions: their digests and refusals, and verdicts against the values that a plain model gives."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_llama import tiny_llama

from steerfast import Condition, SteerfastError, SteeringVector, Test, attach, steer

D, LAYERS = 32, 3


def vector(seed, size=D):
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(
        f"v{seed}", {at: torch.randn(size, generator=rng) for at in range(LAYERS)}
    )


KEY = vector(9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Test("dot", KEY, 0), ValueError, "kind of test"),
        (lambda: Test("cosine", KEY, 0, over="first"), ValueError, "over"),
        (lambda: Test("cosine", KEY, 0, site="resid"), ValueError, "site"),
        (lambda: Test("cosine", torch.ones(4), 0), TypeError, "key is a SteeringVector"),
        (lambda: Test("cosine", KEY, 7), ValueError, "no layer 7"),
        (lambda: Test("cosine", KEY, -1), ValueError, "one layer"),
        (lambda: Test("cosine", KEY, 1.0), TypeError, r"is an integer, got 1\.0"),
        (lambda: Test("cosine", KEY, 0, below=1), TypeError, "below"),
        (lambda: Test("cosine", KEY, 0, threshold=math.inf), ValueError, "finite"),
        (lambda: Test("cosine", KEY, 0, bias=1.0), ValueError, "takes no bias"),
        (lambda: Test("probe", KEY, 0, threshold=1.0), ValueError, "takes no threshold"),
        (
            lambda: Test("cosine", SteeringVector("z", {0: torch.zeros(4)}), 0),
            ValueError,
            "zero at layer 0",
        ),
        (
            lambda: Test("cosine", SteeringVector("z", {0: torch.ones(2, 4)}), 0),
            ValueError,
            "positional",
        ),
        (lambda: Condition(()), ValueError, "1 to 4 tests"),
        (lambda: Condition((Test("cosine", KEY, 0),) * 5), ValueError, "1 to 4 tests"),
        (lambda: Condition(KEY), TypeError, "iterable"),
        (lambda: Condition((KEY,)), TypeError, "made of Tests"),
        (lambda: Condition(Test("cosine", KEY, 0), require="none"), ValueError, "require"),
        (
            lambda: Condition((Test("cosine", KEY, 0), Test("cosine", vector(1, 16), 0))),
            ValueError,
            "hidden sizes",
        ),
        (
            lambda: steer(vector(1, 16), condition=Condition(Test("cosine", KEY, 0))),
            ValueError,
            "hidden sizes",
        ),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_digest_is_of_what_is_decided():
    base = {"kind": "cosine", "key": KEY, "layer": 1}
    other = [{"kind": "projection"}, {"key": vector(8)}, {"layer": 2}, {"threshold": 0.1}]
    other += [{"site": "resid_mid"}, {"over": "mean"}, {"below": True}, {}]
    each = [Condition(Test(**{**base, **change})) for change in other]
    pair = each[0].tests + each[1].tests
    each += [Condition(pair), Condition(pair, require="any")]
    assert len({one.digest for one in each}) == len(each)
    assert Condition(pair).digest == Condition(pair[::-1]).digest
    plans = {steer(KEY, condition=one).digest for one in [None, *each]}
    assert len(plans) == len(each) + 1


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden=D, layers=LAYERS, vocabulary=64, heads=2, spread=0.3, seed=3)


def streams(model, prompt):
    """The stream after layer 0 at every token of one prompt, [T, D]."""
    with torch.no_grad():
        return model(prompt[None], output_hidden_states=True).hidden_states[1][0]


def value(kind, stream):
    key = KEY.at(0)
    dots = stream @ key
    if kind == "cosine":
        return dots / (stream.norm(dim=-1) * key.norm())
    return dots / key.norm() if kind == "projection" else dots


@pytest.mark.parametrize("kind", ["cosine", "projection", "probe"])
@pytest.mark.parametrize("over", ["last", "mean"])
@pytest.mark.parametrize("below", [False, True])
def test_rows_decide_for_themselves(model, kind, over, below):
    """Four prompts, left-padded, with a threshold between their values: each is steered or not as its own value says."""
    rng = torch.Generator().manual_seed(4)
    prompts = [torch.randint(1, 64, (n,), generator=rng) for n in (5, 1, 7, 3)]
    values = [value(kind, streams(model, prompt)) for prompt in prompts]
    values = torch.stack([each[-1] if over == "last" else each.mean() for each in values])
    between = values.sort().values[1:3].mean().item()
    assert (values - between).abs().min() > 1e-3
    limit = {"bias": -between} if kind == "probe" else {"threshold": between}
    condition = Condition(Test(kind, KEY, 0, over=over, below=below, **limit))
    met = (values < between) if below else (values > between)
    assert met.sum() == 2

    width = max(len(prompt) for prompt in prompts)
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts])
    asked = {"attention_mask": (ids != 0).long(), "max_new_tokens": 5, "do_sample": False}
    asked |= {"output_scores": True, "return_dict_in_generate": True}

    def scores(plans):
        with attach(model) as handle, handle.use(plans):
            return torch.stack(model.generate(ids, **asked).scores, 1)

    steered = steer(vector(1), 4.0)
    conditional = scores(steer(vector(1), 4.0, condition=condition))
    plain = scores(None)
    # What a met condition leaves: the last prompt token above layer 0, later tokens everywhere.
    later = scores(
        [
            steer(vector(1).select([1, 2]), 4.0, select="last_prompt_token") if one else None
            for one in met
        ]
    )
    for row in range(4):
        if met[row]:
            assert torch.allclose(conditional[row, 0], later[row, 0], atol=1e-4)
            assert not torch.allclose(conditional[row, 0], plain[row, 0], atol=1e-2)
        else:
            assert torch.allclose(conditional[row], plain[row], atol=1e-4)
    assert not torch.allclose(scores(steered), conditional, atol=1e-2)


def test_a_mean_wants_the_whole_prompt(model):
    """A cache that brings the beginning of the prompt hides it from the mean; the last token is still to come."""
    ids = torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
    mean = steer(KEY, condition=Condition(Test("cosine", KEY, 0, over="mean")))
    with (
        attach(model) as handle,
        handle.use(mean),
        pytest.raises(SteerfastError, match="averages over the prompt, but a cache brings 5"),
    ):
        model.generate(ids, past_key_values=cache, max_new_tokens=2)


def test_a_bare_forward_must_be_told_the_prompt(model):
    last = steer(KEY, condition=Condition(Test("cosine", KEY, 0)))
    with attach(model) as handle:
        with handle.use(last), pytest.raises(SteerfastError, match="prompt_lengths"):
            model(torch.tensor([[1, 2, 3]]))
        with handle.use(last, prompt_lengths=[2]):
            model(torch.tensor([[1, 2, 3]]))


def test_a_compiled_forward_cannot_decide_and_act_at_once(model):
    """Eager code reads the prompt first, in a pass of its own; compiled code says that it cannot."""
    ids = torch.tensor([[1, 2, 3, 4]])
    plan = steer(KEY, 4.0, condition=Condition(Test("projection", KEY, 1, threshold=-1e6)))
    torch._dynamo.reset()
    with attach(model, measured=[("resid_post", 1)]) as handle, torch.no_grad():
        compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="eager")
        with (
            handle.use(plan, prompt_lengths=[2]),
            pytest.raises(Exception, match="forward of its own"),
        ):
            compiled(ids)
        with handle.use(plan, prompt_lengths=[4]):
            assert torch.allclose(compiled(ids).logits, model(ids).logits, atol=1e-4)
    torch._dynamo.reset()
