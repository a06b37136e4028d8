"""Layers that look like Llama's and do something else: steered right all the same, and fused only where they are what they seem."""

from __future__ import annotations

import decoder_checks as checks
import pytest
import torch
from tiny_decoders import tiny_decoder
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from steerfast import attach


class AddsAConstant(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs) + 0.25


class ScalesInTraining(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        stream = super().forward(hidden_states, *args, **kwargs)
        return stream * 0.5 if self.training else stream


class ReadsTheCacheLength(LlamaDecoderLayer):
    def forward(self, hidden_states, past_key_values=None, **kwargs):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        stream = super().forward(hidden_states, past_key_values=past_key_values, **kwargs)
        return stream * 1.5 if seen > 2 and stream.shape[1] == 1 else stream


class Alternates(LlamaDecoderLayer):
    calls = 0

    def forward(self, hidden_states, *args, **kwargs):
        Alternates.calls += 1
        return super().forward(hidden_states, *args, **kwargs) * (1 + Alternates.calls % 2)


class OtherwiseForOneToken(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        stream = super().forward(hidden_states, *args, **kwargs)
        return stream.neg() if stream.shape[1] == 1 else stream


class WritesToItsInput(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        hidden_states.mul_(0.5)
        return super().forward(hidden_states, *args, **kwargs)


class AddsInPlace(LlamaDecoderLayer):
    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        normed = self.input_layernorm(hidden_states)
        kwargs |= {
            "attention_mask": attention_mask,
            "position_embeddings": position_embeddings,
        }
        hidden_states += self.self_attn(hidden_states=normed, **kwargs)[0]
        hidden_states += self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class ReturnsACopy(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs).clone()


class CallsItsMlpTwice(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        stream = super().forward(hidden_states, *args, **kwargs)
        return stream + self.mlp(self.post_attention_layernorm(stream))


class TakesTheOtherOfAPair(LlamaDecoderLayer):
    """Its mixture returns (hidden, something else of that shape), and it is that which is added."""

    def forward(self, hidden_states, *args, **kwargs):
        attended = self.self_attn(
            *args, hidden_states=self.input_layernorm(hidden_states), **kwargs
        )[0]
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))[1]


class Pair(torch.nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return x, self.mlp(x)


class TwoMlps(LlamaDecoderLayer):
    def forward(self, hidden_states, *args, **kwargs):
        attended = self.self_attn(
            *args, hidden_states=self.input_layernorm(hidden_states), **kwargs
        )[0]
        hidden_states = hidden_states + attended
        normed = self.post_attention_layernorm(hidden_states)
        return hidden_states + (self.mlp(normed) + self.mlp(normed))


UNFUSED = [
    AddsAConstant,
    ScalesInTraining,
    ReadsTheCacheLength,
    OtherwiseForOneToken,
    WritesToItsInput,
    CallsItsMlpTwice,
    TakesTheOtherOfAPair,
    TwoMlps,
]
EITHER = [AddsInPlace, ReturnsACopy]


def lying(kind, layer=1):
    model = tiny_decoder("llama")
    model.model.layers[layer].__class__ = kind
    if kind is TakesTheOtherOfAPair:
        model.model.layers[layer].mlp = Pair(model.model.layers[layer].mlp)
    return model


@pytest.mark.parametrize("kind", [*UNFUSED, *EITHER])
def test_is_right_whatever_its_layers_do(kind):
    case = checks.case_of(lying(kind))
    with attach(case.model) as handle:
        if kind in UNFUSED:
            assert handle.survey.fused == 3
            assert handle.survey.layers[1].reason
    checks.steered(case)
    checks.greedy(case)


def test_training_is_as_it_was():
    case = checks.case_of(lying(ScalesInTraining))
    ids, mask = checks.prompts()
    case.model.train()
    want = checks.logits(case.model, ids, mask)
    with attach(case.model):
        assert case.model.training
        checks.assert_close(checks.logits(case.model, ids, mask), want, mask)


def test_a_layer_that_is_never_twice_the_same_is_left_alone():
    model = lying(Alternates)
    with attach(model) as handle:
        assert handle.survey.layers[1].wiring is None


def test_layers_may_share_their_parts():
    model = tiny_decoder("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model.model.layers[2].input_layernorm = model.model.layers[0].input_layernorm
    case = checks.case_of(model)
    with attach(model) as handle:
        assert handle.survey.fused == 4
    checks.idle_bitwise(case)
    checks.steered(case)
    checks.greedy(case)
