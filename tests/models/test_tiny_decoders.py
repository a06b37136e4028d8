"""The tiny decoders that other tests use: what is asked of each, on a handful of different ones."""

import pytest
import torch
from tiny_decoders import run_twice, tiny_decoder


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3", "qwen3_next", "mamba2", "bart"])
def test_runs_and_goes_on_with_its_cache(name):
    model = tiny_decoder(name)
    _, step = run_twice(model)
    ids = torch.randint(2, 128, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.no_grad():
        at_once = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(step[:, -1], at_once[:, -1], rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert model.generation_config.eos_token_id is None


def test_the_same_seed_makes_the_same_weights_and_leaves_the_generator():
    torch.manual_seed(3)
    first, second, other = (tiny_decoder("llama", seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(("name", "middle"), [("llama", 1.0), ("gemma", 0.0), ("nemotron", 0.0)])
def test_no_norm_leaves_its_input_as_it_is(name, middle):
    weight = tiny_decoder(name).model.layers[0].input_layernorm.weight
    assert middle - 0.5 <= weight.min() < middle - 0.3
    assert middle + 0.3 < weight.max() <= middle + 0.5


def test_factors_of_one_are_changed():
    assert tiny_decoder("granite").config.residual_multiplier == 0.7
    scalars = [layer.layer_scalar for layer in tiny_decoder("gemma4_text").model.layers]
    assert torch.equal(torch.stack(scalars), torch.full((4, 1), 0.7))


def test_each_kind_of_layer_is_kept():
    kinds = tiny_decoder("qwen3_next", layers=2).config.layer_types
    assert kinds == ["linear_attention", "full_attention"]
    config = tiny_decoder("kimi_linear", layers=6).config
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    assert set(config.mlp_layer_types) == {"dense", "sparse"}
    assert len(config.layer_types) == 6


def test_overrides_reach_the_decoder_within_a_larger_model():
    assert tiny_decoder("gemma3", hidden_size=32).get_decoder().config.hidden_size == 32


def test_runs_in_bfloat16_with_the_router_in_float32_as_from_pretrained_leaves_it():
    model = tiny_decoder("inkling2_text", dtype=torch.bfloat16)
    run_twice(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16, torch.float32}
