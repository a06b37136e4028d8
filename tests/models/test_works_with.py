"""Where users plug a steered model in: pipelines, streamers, quantised weights. Each answers as the same model does under
plain forward hooks. (Beams, caches, LoRA, compile: test_patching_hooks.py; offloading: test_patching_refusals.py.)"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from steerfast import SteerfastError, SteeringVector, attach, steer
from steerfast.models.load import load_model

LAYERS = (1, 2)
RNG = torch.Generator().manual_seed(3)
VECTOR = SteeringVector("v", {layer: torch.randn(64, generator=RNG) for layer in LAYERS})
PLAN = steer(VECTOR, 2.0)
PROMPTS = ["My day was", "Then it rained, and"]
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@contextlib.contextmanager
def hooked(model: Any, rows: tuple[int, ...] = (0, 1)) -> Iterator[None]:
    """PLAN at ``rows`` of the batch, as one would without a library."""

    def adding(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            added = torch.zeros_like(output)
            added[[row for row in rows if row < len(output)]] = 2.0 * VECTOR.at(layer)
            return output + added

        return hook

    layers = next(part for part in model.modules() if hasattr(part, "layers")).layers
    hooks = [layers[layer].register_forward_hook(adding(layer)) for layer in LAYERS]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def answers(generator: Any, **options: Any) -> list[str]:
    found = generator(PROMPTS, return_full_text=False, **GREEDY, **options)
    return [one["generated_text"] for (one,) in found]


@pytest.fixture
def stock(tiny_folder):
    return load_model(str(tiny_folder), dtype=torch.float32)


@pytest.mark.parametrize("attached", ["before", "after"])
def test_a_pipeline(attached, tiny, stock):
    handle = attach(tiny.model) if attached == "before" else None
    generator = pipeline("text-generation", model=tiny.model, tokenizer=tiny.tokenizer)
    handle = handle or attach(tiny.model)
    plain = pipeline("text-generation", model=stock.model, tokenizer=stock.tokenizer)
    with hooked(stock.model):
        want = answers(plain)
    assert want != answers(plain)
    with handle.use(PLAN):
        assert answers(generator) == want
    assert answers(generator) == answers(plain)


def test_a_pipeline_with_a_plan_a_row_takes_the_rows_in_one_batch(tiny, stock):
    generator = pipeline("text-generation", model=tiny.model, tokenizer=tiny.tokenizer)
    plain = pipeline("text-generation", model=stock.model, tokenizer=stock.tokenizer)
    with hooked(stock.model, rows=(1,)):
        want = answers(plain, batch_size=2)
    with attach(tiny.model) as handle, handle.use([None, PLAN]):
        assert answers(generator, batch_size=2) == want
        with pytest.raises(ValueError, match="2 plans, but generate got 1 prompts"):
            answers(generator)
    unsteered = answers(plain, batch_size=2)
    assert unsteered[0] == want[0]
    assert unsteered[1] != want[1]


def continuation(loaded: Any) -> str:
    ids = loaded.tokenizer(PROMPTS[0], return_tensors="pt")
    tokens = loaded.model.generate(**ids, **GREEDY, pad_token_id=1)[0, ids.input_ids.shape[1] :]
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_text_streamer(tiny, stock, capsys):
    ids = tiny.tokenizer(PROMPTS[0], return_tensors="pt")
    with hooked(stock.model):
        want = continuation(stock)
    streamer = TextStreamer(tiny.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with attach(tiny.model) as handle, handle.use(PLAN):
        tiny.model.generate(**ids, **GREEDY, streamer=streamer, pad_token_id=1)
    assert capsys.readouterr().out == want + "\n"
    assert want != continuation(stock)


def test_an_iterator_streamer_with_generate_in_a_thread(tiny, stock):
    """The plan is chosen here, the model runs there: one after the other, never at once."""
    ids = tiny.tokenizer(PROMPTS[0], return_tensors="pt")
    with hooked(stock.model):
        want = continuation(stock)
    with attach(tiny.model) as handle:
        for plan, text in ((PLAN, want), (None, continuation(stock)), (PLAN, want)):
            streamer = TextIteratorStreamer(
                tiny.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
            )
            arguments = {**ids, **GREEDY, "streamer": streamer, "pad_token_id": 1}
            with handle.use(plan):
                running = threading.Thread(target=tiny.model.generate, kwargs=arguments)
                running.start()
                pieces = list(streamer)
                running.join()
            assert "".join(pieces) == text
            assert handle.report().steered == (plan is not None)


@pytest.mark.parametrize("negative", [None, [[3, 4]]], ids=["unconditional", "negative prompt"])
def test_guidance_steers_both_passes_or_is_refused(negative, tiny, stock):
    """Classifier-free guidance runs the model again inside a logits processor: rows that ``generate`` never prepared."""
    ids = torch.arange(5, 11)[None]
    guided = {**GREEDY, "guidance_scale": 1.5, "pad_token_id": 1}
    if negative is not None:
        guided["negative_prompt_ids"] = torch.tensor(negative)
    with hooked(stock.model):
        want = stock.model.generate(ids, **guided)
    assert not torch.equal(want, stock.model.generate(ids, **guided))
    with attach(tiny.model) as handle:
        with handle.use(PLAN):
            assert torch.equal(tiny.model.generate(ids, **guided), want)
        generated = steer(VECTOR, 2.0, select="generated")
        with handle.use(generated), pytest.raises(SteerfastError, match="guidance"):
            tiny.model.generate(ids, **guided)


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits, tiny_folder):
    pytest.importorskip("bitsandbytes", reason="quantised Linear layers come with bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model, stock = (
        AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=config).eval()
        for _ in range(2)
    )
    kinds = {type(part).__name__ for part in model.modules()}
    assert {8: "Linear8bitLt", 4: "Linear4bit"}[bits] in kinds
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad(), hooked(stock, rows=(1,)):
        want, tokens = stock(ids).logits, stock.generate(ids, **GREEDY, pad_token_id=1)
    with torch.no_grad(), attach(model) as handle, handle.use([None, PLAN]):
        got = model(ids).logits
        assert torch.equal(model.generate(ids, **GREEDY, pad_token_id=1), tokens)
    # The norms before quantised matrix products may tip one of their roundings.
    assert (got - want).abs().max() <= 2e-2 * want.abs().max()
    with torch.no_grad():
        plain = stock(ids).logits
    assert (plain[1] - want[1]).abs().max() > 10 * (got - want).abs().max()
    assert torch.equal(plain[0], want[0])


def test_a_device_map(tiny_folder, stock):
    """accelerate's, which decides where layers go."""
    pytest.importorskip("accelerate")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, device_map="auto").eval()
    ids = torch.arange(5, 17).reshape(2, 6).to(model.device)
    with hooked(stock.model):
        want = stock.model.generate(ids.cpu(), **GREEDY, pad_token_id=1)
    with attach(model) as handle, handle.use(PLAN):
        assert torch.equal(model.generate(ids, **GREEDY, pad_token_id=1).cpu(), want)


def test_a_classifier(tiny_folder):
    """What contains one LlamaModel, but does not generate."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=3).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    model.config.pad_token_id = 1
    with torch.no_grad():
        plain = model(ids).logits
        with hooked(model, rows=(1,)):
            want = model(ids).logits
        with attach(model) as handle, handle.use([None, PLAN]):
            got = model(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - plain)[1].abs().max() > 0.01
