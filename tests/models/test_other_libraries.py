"""Models that other libraries have changed, before or after attach: right, or refused with the next step. With plain hooks on the
same model as the oracle. (LoRA: test_patching_hooks.py; offloading: test_patching_refusals.py.)"""

from __future__ import annotations

import copy
import functools

import accelerate
import peft
import pytest
import torch
from tiny_llama import tiny_llama
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaModel

from steerfast import SteerfastError, SteeringVector, attach, extract_pairs, steer
from steerfast.extraction import ContrastPair

IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
VECTOR = SteeringVector("v", {1: torch.randn(32, generator=torch.Generator().manual_seed(3))})
PLAN = steer(VECTOR, 2.0)


def tiny():
    return tiny_llama(hidden=32, layers=3, vocabulary=64, heads=2, spread=0.2)


@torch.no_grad()
def hooked(model, inputs=IDS):
    """The first output under a hook that adds to layer 1."""
    layers = next(part for part in model.modules() if isinstance(part, LlamaModel)).layers
    handle = layers[1].register_forward_hook(lambda m, i, output: output + 2.0 * VECTOR.at(1))
    found = model(inputs, use_cache=False)[0]
    handle.remove()
    return found


@torch.no_grad()
def check(model, handle, expected, idle):
    torch.testing.assert_close(model(IDS, use_cache=False)[0], idle, atol=3e-2, rtol=3e-2)
    with handle.use(PLAN):
        found = model(IDS, use_cache=False)[0]
        torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)
        assert handle.report().steered == IDS.numel()
    assert (expected - idle).abs().max() > 0.5


@pytest.mark.parametrize("inner", [False, True], ids=["with head", "decoder"])
@pytest.mark.parametrize("first", ["attach", "prepare"])
def test_accelerate_prepare(inner, first):
    """It takes ``forward.__func__`` and binds an autocast around it to the module."""
    model = tiny().model if inner else tiny()
    stock = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    accelerator.prepare(stock)
    if first == "attach":
        handle = attach(model)
        accelerator.prepare(model)
    else:
        accelerator.prepare(model)
        handle = attach(model)
    with torch.no_grad():
        idle = stock(IDS, use_cache=False)[0]
    check(model, handle, hooked(stock), idle)


@pytest.mark.parametrize("part", ["model", "model.layers.1", "model.norm"])
def test_whoever_binds_the_function_of_a_forward_to_the_module(part):
    model, stock = tiny(), tiny()
    with torch.no_grad():
        idle = stock(IDS, use_cache=False)[0]
    handle = attach(model)
    module = model.get_submodule(part)
    taken = module.forward.__func__

    @functools.wraps(taken)
    def around(self, *args, **kwargs):
        return taken(self, *args, **kwargs)

    module.forward = around.__get__(module)
    check(model, handle, hooked(stock), idle)
    with pytest.raises(SteerfastError, match="was replaced after attach"):
        handle.detach()
    del module.__dict__["forward"]


def trained_norms(model, how):
    kinds = ["input_layernorm", "post_attention_layernorm", "norm"]
    if how == "LoRA":
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=kinds)
    else:
        config = peft.LNTuningConfig(target_modules=kinds)
    adapted = peft.get_peft_model(model, config).eval()
    rng = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "norm" in name:
            parameter.data += 0.2 * torch.rand(parameter.shape, generator=rng)
    return adapted


@pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("how", ["LoRA", "LN tuning"])
@pytest.mark.parametrize("first", ["attach", "PEFT"])
def test_norms_that_peft_trains(how, first):
    stock = trained_norms(tiny(), how)
    if first == "attach":
        model = tiny()
        handle = attach(model)
        model = trained_norms(model, how)
    else:
        model = trained_norms(tiny(), how)
        handle = attach(model)
    with torch.no_grad():
        idle, base = stock(IDS, use_cache=False)[0], tiny()(IDS, use_cache=False)[0]
    assert (idle - base).abs().max() > 0.05  # the adapters' norms are at work
    check(model, handle, hooked(stock), idle)
    handle.detach()


class SoftPrompt(nn.Module):
    """The embeddings of the first tokens are trained; it has no ``weight``."""

    def __init__(self, table, count):
        super().__init__()
        self.table, self.rows = table, nn.Parameter(table.weight[:count].detach() + 1)

    def forward(self, tokens):
        rows = self.rows.expand(len(tokens), -1, -1)
        return torch.cat([rows, self.table(tokens[:, len(self.rows) :])], 1)


class Fixed(nn.Module):
    """It has no parameter at all."""

    def forward(self, tokens):
        return torch.nn.functional.one_hot(tokens % 32, 32).float()


def soften(model, kind):
    table = model.get_input_embeddings()
    model.set_input_embeddings(SoftPrompt(table, 2) if kind is SoftPrompt else Fixed())
    return model


class Letters:
    """A tokenizer of letters."""

    is_fast, eos_token_id, bos_token = False, None, None

    def __call__(self, text, **_):
        return {"input_ids": [1, 2, *(2 + ord(letter) % 60 for letter in text)]}


PAIRS = [ContrastPair("ab", "cd", "ef"), ContrastPair("xy", "zw", "qr")]


def by_hooks(model):
    """{layer: mean of last tokens of the positive texts minus that of the negative ones}."""
    seen = {layer: [] for layer in range(3)}
    handles = [
        layer.register_forward_hook(
            lambda m, i, output, index=index: seen[index].append(output[0, -1])
        )
        for index, layer in enumerate(model.model.layers)
    ]
    for pair in PAIRS:
        for side in (pair.positive, pair.negative):
            with torch.no_grad():
                model(torch.tensor([Letters()(pair.prompt + side)["input_ids"]]))
    for handle in handles:
        handle.remove()
    return {
        layer: torch.stack(rows[0::2]).mean(0) - torch.stack(rows[1::2]).mean(0)
        for layer, rows in seen.items()
    }


@pytest.mark.parametrize("kind", [SoftPrompt, Fixed])
@pytest.mark.parametrize("first", ["attach", "soften"])
def test_embeddings_that_have_no_weight(kind, first):
    stock, model = soften(tiny(), kind), tiny()
    with torch.no_grad():
        idle = stock(IDS, use_cache=False)[0]
    if first == "attach":
        handle = attach(model)
        soften(model, kind)
    else:
        soften(model, kind)
        handle = attach(model)
    check(model, handle, hooked(stock), idle)
    handle.detach()
    found = extract_pairs(model, Letters(), PAIRS, name="x")
    for layer, expected in by_hooks(stock).items():
        torch.testing.assert_close(found.directions[layer], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_extraction_from_a_model_that_is_offloaded(where, attention, tmp_path):
    model = tiny_llama(
        hidden=32, layers=3, vocabulary=64, heads=2, spread=0.2, attn_implementation=attention
    )
    expected = by_hooks(tiny())
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert model.model.embed_tokens.weight.device.type == "meta"
    found = extract_pairs(model, Letters(), PAIRS, name="x")
    for layer, want in expected.items():
        torch.testing.assert_close(found.directions[layer], want, atol=1e-4, rtol=1e-4)


def test_layers_on_several_devices_are_refused_by_attach():
    model = tiny()
    with FakeTensorMode():  # no such device is needed
        elsewhere = nn.Parameter(torch.empty(32, device="cuda:1"))
    model.model.layers[2].input_layernorm._parameters["weight"] = elsewhere
    with pytest.raises(SteerfastError, match=r"layers.0 on cpu, model.layers.2 on cuda:1\)"):
        attach(model)
    assert "forward" not in model.model.__dict__


def test_a_model_that_becomes_float64_is_attached_again():
    model = tiny()
    with attach(model, backend=None) as handle:
        model.double()
        if handle.backend != "reference":
            with pytest.raises(SteerfastError, match="attach again"):
                model(IDS)
    stock = tiny().double()
    with torch.no_grad():
        idle = stock(IDS, use_cache=False)[0]
    with attach(model) as handle:
        check(model, handle, hooked(stock), idle)
