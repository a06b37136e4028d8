"""Logits as the model itself makes them, of a stream: what stands behind the output embedding is not left out."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import tiny_decoder

from steerfast import SteerfastError, attach
from steerfast.decoders.find import find_decoder
from steerfast.experiments.dose import PairBatch, log_probability_differences
from steerfast.models.projection import Projection
from steerfast.sweep.engine import default_batch_tokens, sweep
from steerfast.sweep.readouts import NextTokens

KINDS = ("llama", "gemma2", "granite", "cohere", "gpt2", "gpt_neox", "opt", "mixtral", "bloom")
BEHIND = {"gemma2": "final_logit_softcapping", "granite": "logits_scaling", "cohere": "logit_scale"}


def model_of(name):
    small = {"final_logit_softcapping": 0.5} if name == "gemma2" else {}
    return tiny_decoder(name, **small)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_logits_are_the_models(name):
    model = model_of(name)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before = dict(model._modules)
    stream = find_decoder(model).module(ids, use_cache=False).last_hidden_state
    got = Projection(model)(stream[0])
    torch.testing.assert_close(got, model(ids, use_cache=False).logits[0], rtol=1e-6, atol=1e-6)
    if name in BEHIND:
        assert getattr(model.config, BEHIND[name]) not in (None, 1)
        assert not torch.allclose(got, model.get_output_embeddings()(stream[0]))
    assert model._modules == before


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt_neox"])
@torch.no_grad()
def test_dose_response_and_sweeps_read_the_models_own_chances(name):
    model, ids = model_of(name), torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]])
    scores = model(ids, use_cache=False).logits.log_softmax(-1)[:, :-1]
    chances = scores.gather(2, ids[:, 1:, None])[..., 0].sum(1).double()
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, -1] = False
    batch = PairBatch(ids, torch.ones_like(ids), scored)
    with attach(model) as handle:
        got = log_probability_differences(handle, batch, None)
    torch.testing.assert_close(got, chances[:1] - chances[1:], rtol=1e-4, atol=1e-5)
    if name == "granite":
        every = sweep(model, [None], ids.tolist(), lambda head: NextTokens(head, ids.tolist()))
        torch.testing.assert_close(every[0, :, 3], chances, rtol=1e-5, atol=1e-5)


def test_a_decoder_alone_makes_no_logits():
    model = tiny_decoder("llama").model
    with pytest.raises(SteerfastError, match="LlamaModel makes no logits of its stream"):
        Projection(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mixtral", "gemma3_text"])
def test_a_batch_fits_whatever_a_config_calls_its_sizes(name):
    assert 0 < default_batch_tokens(tiny_decoder(name)) <= 4096
