"""Copies of an attached model, pickled ones too, and handles that were lost: attached, idle, and nobody else's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tiny_llama import tiny_llama

import steerfast
from steerfast import SteerfastError, SteeringVector, attach, handle_of, steer

IDS = torch.tensor([[5, 6, 7, 8]])


def tiny():
    return tiny_llama(hidden=32, layers=2, vocabulary=64, heads=2, spread=0.2)


def vector():
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    return SteeringVector("v", {0: values[0], 1: values[1]})


def hooked():
    model, v = tiny(), vector()
    for layer in v.layers:
        model.model.layers[layer].register_forward_hook(
            lambda module, inputs, output, layer=layer: output + 2.0 * v.at(layer)
        )
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_is_attached_and_idle_and_a_model_of_its_own(way):
    model = tiny()
    idle, steered = logits(tiny()), logits(hooked())
    with attach(model, slots=3, backend="reference") as handle:
        twin = way(model)
        other = handle_of(twin)
        assert (other.backend, other.table.records.shape[1]) == ("reference", 3)
        torch.testing.assert_close(logits(twin), idle)
        with other.use(steer(vector(), 2.0)):
            torch.testing.assert_close(logits(twin), steered)
            torch.testing.assert_close(logits(model), idle)
            assert (other.report().steered, handle.report().steered) == (4, 0)
        with handle.use(steer(vector(), 2.0)):
            torch.testing.assert_close(logits(model), steered)
            torch.testing.assert_close(logits(twin), idle)
    other.detach()
    for part in twin.modules():
        assert not set(part.__dict__) & {"forward", "generate", "prepare_inputs_for_generation"}
    assert torch.equal(logits(twin), idle)
    with attach(twin) as again, again.use(steer(vector(), 2.0)):
        torch.testing.assert_close(logits(twin), steered)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_generates_steered(way):
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = hooked().generate(IDS, **asked)
    assert not torch.equal(expected, tiny().generate(IDS, **asked))
    model = tiny()
    with attach(model):
        twin = way(model)
    with handle_of(twin) as handle, handle.use(steer(vector(), 2.0)):
        assert torch.equal(twin.generate(IDS, **asked), expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_copy_is_made_under_use(way):
    """Nobody could end it there."""
    model = tiny()
    refused = pytest.raises(SteerfastError, match="cannot be copied while a plan is in use")
    with attach(model) as handle, handle.use(steer(vector(), 2.0)), refused:
        way(model)


def test_a_handle_that_was_lost_is_found():
    """An exception in a notebook's cell took it along, with a use that is in force."""

    def cell(model):
        attach(model).use(steer(vector(), 2.0))
        raise RuntimeError

    model, idle = tiny(), logits(tiny())
    with pytest.raises(RuntimeError):
        cell(model)
    torch.testing.assert_close(logits(model), logits(hooked()))
    with pytest.raises(SteerfastError, match=r"steerfast.handle_of\(model\).detach\(\)"):
        attach(model)
    assert "handle_of" in dir(steerfast)
    handle_of(model).detach()
    assert torch.equal(logits(model), idle)
    with attach(model) as handle:
        torch.testing.assert_close(logits(model), idle)
        assert handle.report().steered == 0
    with pytest.raises(SteerfastError, match="is not attached"):
        handle_of(model)
    with pytest.raises(TypeError, match="torch module"):
        handle_of("model")


def test_two_handles_of_one_model_are_of_one_mind():
    model = tiny()
    first, second = attach(model), handle_of(model)
    use = first.use(steer(vector(), 2.0))
    torch.testing.assert_close(logits(model), logits(hooked()))
    assert second.report().steered == 4
    second.detach()
    with pytest.raises(SteerfastError, match="detached"):
        first.use(None)
    with pytest.raises(SteerfastError, match="has ended"):
        use.change(None)
    first.detach()
