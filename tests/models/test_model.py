"""The real model, SmolLM2-135M-Instruct: idle is stock, steered is the hook, and the demo's promises."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from steerfast import SteeringVector, attach, contrast, extract_pairs, ops, steer
from steerfast.experiments.decode_speed import twin
from steerfast.experiments.demo import FEWER_COEFFICIENTS
from steerfast.experiments.dose import dose_response

pytestmark = pytest.mark.model
PROMPTS = [pair.prompt for name in contrast.shipped() for pair in contrast.load(name).held_out[:4]]


def greedy(model, tokenizer, prompt, tokens=12):
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=2)
    return out[0, ids["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def vector():
    generator = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(576, generator=generator) for layer in range(30)}
    return SteeringVector("random", directions)


def test_idle_is_stock_on_20_prompts(smollm2):
    model, tokenizer, _ = smollm2
    assert len(PROMPTS) == 20
    patched = twin(model)
    with attach(patched):
        for prompt in PROMPTS:
            ours, stock = (greedy(each, tokenizer, prompt, 6) for each in (patched, model))
            assert ours == stock
        ids = tokenizer(PROMPTS[:6], return_tensors="pt", padding=True)
        with torch.inference_mode():
            wanted, got = model(**ids).logits, patched(**ids).logits
        real = ids["attention_mask"].bool()
        assert (got - wanted)[real].abs().max() <= 1e-5 * wanted[real].abs().max()
    with torch.inference_mode():
        assert torch.equal(patched(**ids).logits, wanted)


def test_each_layer_keeps_the_residual_stream_bitwise(smollm2):
    model, tokenizer, _ = smollm2
    patched = twin(model)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode(), attach(patched):
        hidden = model.model(ids, output_hidden_states=True).hidden_states
        position = torch.arange(ids.shape[1])[None]
        rotary = model.model.rotary_emb(hidden[0], position_ids=position)
        patched.model(ids)  # fills the route for these rows
        for stock, ours, stream in zip(
            model.model.layers, patched.model.layers, hidden, strict=False
        ):
            normed = ours.input_layernorm(stream)
            branch, _ = ours.self_attn(
                hidden_states=normed, position_embeddings=rotary, attention_mask=None
            )
            mid, _ = ops.add_rms_norm(branch, stream, ours.post_attention_layernorm.weight, 1e-5)
            assert torch.equal(mid, stream + branch)
            same = {"position_embeddings": rotary, "position_ids": position}
            torch.testing.assert_close(
                ours(stream, **same), stock(stream, **same), rtol=2e-5, atol=2e-4
            )


def test_steered_rows_equal_a_hook_through_generate(smollm2, vector):
    """Left padding, KV cache, another plan per row: every row as its solo run with a plain hook."""
    model, tokenizer, _ = smollm2
    patched = twin(model)
    prompts, doses = PROMPTS[:4], [(5, 3.0), None, (12, -4.0), (20, 6.0)]
    tokenizer.padding_side = "left"
    ids = tokenizer(prompts, return_tensors="pt", padding=True)
    plans = [None if d is None else steer(vector, d[1], layers=[d[0]]) for d in doses]
    with attach(patched) as handle, handle.use(plans):
        out = patched.generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=2)
    for row, (prompt, dose) in enumerate(zip(prompts, doses, strict=True)):
        if dose is not None:
            layer, coefficient = dose
            delta = coefficient * vector.at(layer)
            hook = model.model.layers[layer].register_forward_hook(
                lambda m, a, o, delta=delta: o + delta
            )
        alone = greedy(model, tokenizer, prompt, tokens=10)
        if dose is not None:
            hook.remove()
        got = out[row, ids["input_ids"].shape[1] :].tolist()
        assert got[: len(alone)] == alone


def test_demo_on_the_real_model(tmp_path, smollm2_folder):
    """The command of the README, as a process of its own, with everything that it promises."""
    main = "from steerfast.cli import main; main()"
    command = [sys.executable, "-c", main, "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(facts["dose_response"]) == {"sentiment"}
    steers(facts["dose_response"]["sentiment"])
    texts = {row["coefficient"]: row["text"] for row in facts["generations"]}
    assert len(set(texts.values())) == len(texts) >= 3
    assert all((tmp_path / path).exists() for path in facts["paths"].values())


def steers(points):
    """The effect grows with every dose, and is more than three times what random directions do."""
    doses, effects, controls = zip(*points, strict=True)
    assert len(points) >= 5
    assert list(doses) == sorted(doses)
    assert all(a < b for a, b in pairwise(effects)), effects
    assert max(effects) - min(effects) >= 3 * (max(controls) - min(controls))


@pytest.mark.parametrize("name", [name for name in contrast.shipped() if name != "sentiment"])
def test_every_shipped_direction_steers(name, smollm2):
    """What ``demo --full`` shows of the others, from fewer of the pairs that make a direction and measure it."""
    model, tokenizer, _ = smollm2
    pairs = contrast.load(name)
    made = extract_pairs(model, tokenizer, pairs.train[::4], name=name, position="mean")
    with attach(model) as handle:
        steers(
            dose_response(
                handle,
                tokenizer,
                made,
                pairs.held_out[::3],
                layers=[10],
                coefficients=FEWER_COEFFICIENTS,
            )
        )
