"""Decoders that people name, in every way to run a model: against plain hooks, as in ``test_every_decoder.py``."""

from __future__ import annotations

from itertools import product

import decoder_checks as checks
import pytest
import torch
from decoder_checks import case_of
from hooked_decoder import Act, hooked, plans_of
from tiny_decoders import tiny_decoder

from steerfast import attach

NAMED = ["qwen3", "mixtral", "gpt_oss", "gemma3_text", "olmo2", "granite", "glm4", "qwen3_next"]


def everywhere(case, *, when=False):
    return checks.acts_of(case, case.width, when=when)


def steered_and_hooked(case, run, *, when=False):
    """(what ``run`` gives of the attached model, of the hooked one)."""
    ids, mask = checks.prompts()
    rows = everywhere(case, when=when)
    with hooked(case.model, case.layers, rows, mask, case.reader):
        want = run(ids, mask)
    with attach(case.model) as handle, handle.use(plans_of(rows)):
        return run(ids, mask), want


@pytest.mark.parametrize("name", [*NAMED, "gpt2", "mamba"])
def test_beams_and_samples_follow_their_prompts(name):
    case = case_of(tiny_decoder(name))
    for settings in (
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5},
    ):

        def run(ids, mask, settings=settings):
            torch.manual_seed(3)
            return checks.generated(case.model, ids, mask, **settings).sequences

        got, want = steered_and_hooked(case, run, when=True)
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt_oss", "olmo2", "granite"])
def test_a_static_cache(name):
    checks.greedy(case_of(tiny_decoder(name)), cache_implementation="static")


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "olmo2", "granite", "gpt2"])
def test_gradients_flow_through_the_stream(name):
    case = case_of(tiny_decoder(name))
    table = case.model.get_input_embeddings().weight

    def run(ids, mask):
        case.model.zero_grad()
        logits = case.model(input_ids=ids, attention_mask=mask).logits
        logits[mask != 0].square().mean().backward()
        return table.grad.clone()

    got, want = steered_and_hooked(case, run)
    assert float((got - want).abs().max() / want.abs().max()) < 2e-5


@pytest.mark.parametrize(
    "name", ["qwen3", "gemma2", "olmo2", "granite", "mixtral", "gpt2", "bloom"]
)
def test_gradient_checkpointing_changes_nothing(name):
    case = case_of(tiny_decoder(name))
    ids, mask = checks.prompts()
    rows = plans_of(everywhere(case))
    for part in case.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for field in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout"):
        if hasattr(case.model.config, field):
            setattr(case.model.config, field, 0.0)

    def gradients():
        case.model.zero_grad()
        logits = case.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits[mask != 0].square().mean().backward()
        return [p.grad.clone() for p in case.model.parameters() if p.grad is not None]

    case.model.train()
    with attach(case.model) as handle, handle.use(rows):
        want = gradients()
        case.model.gradient_checkpointing_enable()
        got = gradients()
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "olmo2"])
def test_one_graph(name):
    case = case_of(tiny_decoder(name))
    ids, mask = checks.prompts()
    rows = everywhere(case)
    with hooked(case.model, case.layers, rows, mask, case.reader):
        want = checks.logits(case.model, ids, mask)
    torch._dynamo.reset()
    with attach(case.model) as handle:
        compiled = torch.compile(case.model, backend="eager", fullgraph=True)
        with handle.use(plans_of(rows)):
            checks.assert_close(checks.logits(compiled, ids, mask), want, mask)
        plain = checks.logits(case.model, ids, mask)
        checks.assert_close(checks.logits(compiled, ids, mask), plain, mask)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *product(("llama", "gemma2", "olmo2", "mamba"), (torch.bfloat16, torch.float16)),
        *product(("llama", "olmo2", "granite", "gpt2"), (torch.float64,)),
    ],
    ids=str,
)
def test_other_precisions(name, dtype):
    """As far from hooks as one rounding of the stream may lead; in float64 nowhere near."""
    case = case_of(tiny_decoder(name, dtype=dtype))
    near = {torch.bfloat16: 0.06, torch.float16: 0.008, torch.float64: 1e-6}[dtype]

    def run(ids, mask):
        return checks.logits(case.model, ids, mask)

    got, want = steered_and_hooked(case, run)
    checks.assert_close(got, want, checks.prompts()[1], near)
    checks.idle_bitwise(case, near)


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_lora(name):
    peft = pytest.importorskip("peft")
    model = tiny_decoder(name)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, config).eval()
    checks.steered(case_of(model))


def test_int8_weights_of_torchao():
    torchao = pytest.importorskip("torchao", reason="torchao is not installed")
    model = tiny_decoder("gemma2")
    torchao.quantization.quantize_(model, torchao.quantization.Int8WeightOnlyConfig())
    checks.steered(case_of(model))


def test_an_encoder_s_states_are_not_left_out():
    """GPT-2 with cross attention, which no run without an encoder shows: such layers are steered behind their own forward."""
    model = tiny_decoder("gpt2", add_cross_attention=True)
    case = case_of(model)
    ids, mask = checks.prompts()
    states = torch.randn(3, 4, case.width, generator=torch.Generator().manual_seed(0))
    rows = [[act for act in acts if act.site != "resid_mid"] for acts in everywhere(case)]

    def run(**more):
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, **more).logits

    with hooked(model, case.layers, rows, mask, case.reader):
        want = run(encoder_hidden_states=states)
        without = run()
    assert (want - without).abs().max() > 0.1
    mid = [Act("add", 1, torch.ones(case.width), 1.0, "resid_mid")]
    with attach(model) as handle:
        assert handle.survey.fused == 4
        with handle.use(plans_of(rows)):
            checks.assert_close(run(encoder_hidden_states=states), want, mask)
            checks.assert_close(run(), without, mask)
        with (
            handle.use(plans_of([mid])[0]),
            pytest.raises(checks.SteerfastError, match=r"encoder_hidden_states.*steer resid_post"),
        ):
            run(encoder_hidden_states=states)


@pytest.mark.parametrize("way", ["data", "in place", "loaded", "replaced"])
def test_a_norm_with_an_offset_follows_its_weight(way):
    """Gemma's 1 + w is made for the kernel; weights change in ways that leave no trace."""
    model, stock = tiny_decoder("gemma2"), tiny_decoder("gemma2")
    ids = torch.arange(3, 9)[None]
    with attach(model) as handle, handle.use(None), torch.no_grad():
        model(ids)
        for one in (model, stock):
            norms = [part.weight for name, part in one.named_modules() if "norm" in name]
            for weight in norms:
                if way == "data":
                    weight.data.add_(0.5)
                elif way == "in place":
                    weight.add_(0.5)
                elif way == "replaced":
                    weight.data = weight.data + 0.5
            if way == "loaded":
                state = {n: v + 0.5 if "norm" in n else v for n, v in one.state_dict().items()}
                one.load_state_dict(state)
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
