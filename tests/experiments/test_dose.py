"""Dose-response: the effect against log-probabilities computed text by text with a plain hook."""

from __future__ import annotations

import pytest
import torch
from plain_streams import chat_tokenizer, forwards, said

from steerfast import SteeringVector, attach, steer
from steerfast.experiments.decode_speed import step_times, twin
from steerfast.experiments.dose import (
    dose_response,
    log_probability_differences,
    pair_batch,
    random_control,
)
from steerfast.experiments.measure import Laboratory
from steerfast.extraction.contrast import ContrastPair, ContrastSet

PAIRS = [
    ContrastPair("The sea is", " blue today", " grey"),
    ContrastPair("A dog", " sat", " ran away fast"),
]


def vector(scale=1.0):
    generator = torch.Generator().manual_seed(7)
    directions = {layer: scale * torch.randn(64, generator=generator) for layer in range(4)}
    return SteeringVector("v", directions, dict.fromkeys(range(4), 5.0))


@torch.no_grad()
def log_probability(model, tokenizer, prompt, tail, delta):
    hook = model.model.layers[1].register_forward_hook(lambda m, a, out: out + delta)
    tokens = torch.tensor([tokenizer(prompt + tail)["input_ids"]])
    scores = model(tokens).logits.log_softmax(-1)[0]
    hook.remove()
    first = len(tokenizer(prompt)["input_ids"])
    return sum(float(scores[t - 1, tokens[0, t]]) for t in range(first, tokens.shape[1]))


@pytest.mark.parametrize("coefficient", [0.0, 0.5, -0.5])
def test_differences_equal_the_hook(tiny, coefficient):
    model, tokenizer, _ = tiny
    delta = coefficient * 5.0 * vector().at(1) / vector().at(1).norm()
    wanted = [
        log_probability(model, tokenizer, p.prompt, p.positive, delta)
        - log_probability(model, tokenizer, p.prompt, p.negative, delta)
        for p in PAIRS
    ]
    with attach(model) as handle:
        plan = steer(vector(), coefficient, layers=[1], scale="stream")
        got = log_probability_differences(handle, pair_batch(tokenizer, PAIRS), plan)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_pairs_of_any_shape_are_measured_and_two_prompts_are_refused(tiny):
    """Tuples, dicts, messages; of a set, the held-out pairs."""
    model, tokenizer, _ = tiny
    chat = chat_tokenizer()
    plain = [(p.prompt, p.positive, p.negative) for p in PAIRS]
    shapes = [
        (tokenizer, plain),
        (
            tokenizer,
            [dict(zip(("prompt", "positive", "negative"), one, strict=True)) for one in plain],
        ),
        (tokenizer, iter(PAIRS)),
        (tokenizer, ContrastSet("s", "+", "-", "", (), tuple(PAIRS))),
    ]
    asked = ContrastPair([said("user", "Hi")], " yes", " no")
    written = ContrastPair("<s>[user] Hi\n[assistant] ", " yes", " no")
    for tokens, pairs in shapes:
        batch, wanted = pair_batch(tokens, pairs), pair_batch(tokenizer, PAIRS)
        assert torch.equal(batch.ids, wanted.ids)
        assert torch.equal(batch.scored, wanted.scored)
    one, other = pair_batch(chat, [asked]), pair_batch(chat, [written])
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.scored, other.scored)
    ran = forwards(model)
    two = ContrastPair("a", " yes", " yes", negative_prompt="b")
    with attach(model) as handle:
        with pytest.raises(ValueError, match="pair 1 has two prompts"):
            dose_response(handle, tokenizer, vector(), [two], layers=[1])
        for given, message in (
            ({"layers": [9]}, "has no layer 9"),
            ({"layers": [-1]}, "layers count from 0"),
            ({"layers": [1], "coefficients": (0.1, float("nan"))}, "must be finite"),
            ({"layers": [1], "scale": "stram"}, "unknown scale"),
        ):
            with pytest.raises(ValueError, match=message):
                dose_response(handle, tokenizer, vector(), PAIRS, **given)
        with pytest.raises(ValueError, match="continuation of pair 2 has no tokens"):
            dose_response(handle, tokenizer, vector(), [plain[0], ("a", "b", "")], layers=[1])
        with pytest.raises(ValueError, match="dose_response needs at least one pair"):
            dose_response(handle, tokenizer, vector(), [], layers=[1])
    with pytest.raises(ValueError, match="pair 1 has two prompts"):
        Laboratory(tiny).pairs([None], [two])
    assert ran == []


def test_curve_is_relative_to_no_steering_with_a_norm_matched_control(tiny):
    model, tokenizer, _ = tiny
    control = random_control(vector(3.0), seed=1)
    for layer in range(4):
        assert control.at(layer).norm() == pytest.approx(
            float(vector(3.0).at(layer).norm()), rel=1e-6
        )
        assert abs(torch.cosine_similarity(control.at(layer), vector().at(layer), dim=0)) < 0.5
    steps = []
    with attach(model) as handle:
        curve = dose_response(
            handle, tokenizer, vector(), PAIRS, layers=[1], coefficients=(-0.5, 0.0, 0.5),
            progress=lambda: steps.append(1),
        )  # fmt: skip
    assert [point.coefficient for point in curve] == [-0.5, 0.0, 0.5]
    assert curve[1].effect == curve[1].control == 0.0
    assert curve[0].effect != curve[2].effect != curve[2].control
    assert len(steps) == 4


def test_step_times_leave_the_model_stock(tiny):
    model = tiny.model
    times = step_times(model, steer(vector()), steps=3, control=True)
    assert {name: len(series) for name, series in times.items()} == {
        "stock": 3, "patched": 3, "steered": 3, "stock again": 3,
    }  # fmt: skip
    assert "forward" not in model.model.layers[0].__dict__
    copied = twin(model)
    assert copied.model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
