"""What a model computes at ``attach`` may say nothing of what it computes once its values have come: factors of one, empty
weights, dropout that is off."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import tiny_decoder
from torch import Tensor, nn

from steerfast import attach

IDS = torch.arange(3, 15).reshape(2, 6)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def as_stock(model: nn.Module, change) -> None:
    """The attached model after a change is what it is unpatched."""
    with attach(model):
        change(model)
        got = logits(model)
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)


def test_a_factor_of_one_that_is_loaded_later():
    model = tiny_decoder("gemma4_unified_text")
    names = [name for name in model.state_dict() if "layer_scalar" in name]
    assert names
    state = model.state_dict()
    model.load_state_dict(state | {name: torch.ones_like(state[name]) for name in names})
    loaded = {name: torch.full_like(state[name], 0.3) for name in names}
    as_stock(model, lambda one: one.load_state_dict(loaded, strict=False))


@pytest.mark.parametrize(
    ("name", "scale"), [("granite", "residual_multiplier"), ("minicpm3", "residual_scale")]
)
def test_a_scale_of_one_that_is_set_later(name, scale):
    model = tiny_decoder(name)
    layers = model.model.layers
    for layer in layers:
        setattr(layer, scale, 1.0)

    def later(_: nn.Module) -> None:
        for layer in layers:
            setattr(layer, scale, 0.7)

    as_stock(model, later)


@pytest.mark.parametrize("name", ["llama", "granite", "gpt_neox", "cohere", "gemma3_text", "phi"])
def test_empty_weights_that_are_loaded_later(name):
    model = tiny_decoder(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    as_stock(model, lambda one: one.load_state_dict(state))


def test_dropout_that_is_switched_on_later():
    model = tiny_decoder("whisper", dropout=0.0)

    def later(one: nn.Module) -> None:
        one.train()
        for part in one.modules():
            if hasattr(part, "dropout"):
                part.dropout = 0.3
        torch.manual_seed(0)

    with attach(model):
        later(model)
        got = logits(model)
    torch.manual_seed(0)
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)


def test_the_default_device_is_not_the_models():
    model = tiny_decoder("llama")
    with torch.device("meta"):
        attach(model).detach()
