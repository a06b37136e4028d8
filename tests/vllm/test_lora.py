"""LoRA and steering together: the tokens of transformers with the adapter merged into its weights, and the same plan.

An adapter changes what the branches put out, a plan what the stream makes of it, so neither knows of the other. Where they
could meet are the rows of a step, each with an adapter and a slot of its own, and the blocks of the prefix cache.
"""

from __future__ import annotations

import json

import pytest
import torch
from engines import PLANS, Oracle, answers, engine, prompt, sampling, tokens
from safetensors.torch import save_file

from steerfast.serving import armed

RANK, ALPHA = 8, 12.0  # a scale that is not 1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEEDS = {"first": 11, "second": 13}  # by adapter; such that tokens differ under every plan
# One adapter more than there are: vLLM's operators for the CPU give rows without an adapter the last one's (its pull request
# 48421), which stays empty here.
OPTIONS = {"enable_lora": True, "max_loras": len(SEEDS) + 1, "max_lora_rank": RANK}
# One of each way to be steered. Of the last two what is steered depends on where a prompt ends; of the others a longer prompt
# leaves its blocks to a shorter one.
KEYS = ("unsteered", "plus", "generated", "gated", "scheduled", "everywhere")


def learned(model: torch.nn.Module, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every linear layer, by its name, at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(RANK, layer.in_features, generator=generator) * 0.05,
            torch.randn(layer.out_features, RANK, generator=generator) * 0.05,
        )
        for name, layer in model.named_modules()
        if name.endswith(tuple(TARGETS))
    }


@pytest.fixture(scope="module")
def adapters(folder, oracle, tmp_path_factory):
    """{name: (LoRARequest, Oracle with the adapter merged)}; None stands for no adapter."""
    from vllm.lora.request import LoRARequest

    found = {None: (None, oracle)}
    for number, (name, seed) in enumerate(SEEDS.items(), 1):
        merged = Oracle(folder)
        matrices = learned(merged.model, seed)
        with torch.no_grad():
            for layer, (a, b) in matrices.items():
                merged.model.get_submodule(layer).weight += ALPHA / RANK * (b @ a)
        saved = tmp_path_factory.mktemp(name)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS}
        (saved / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
        weights = {
            f"base_model.model.{layer}.lora_{letter}.weight": matrix
            for layer, pair in matrices.items()
            for letter, matrix in zip("AB", pair, strict=True)
        }
        save_file(weights, saved / "adapter_model.safetensors")
        found[name] = (LoRARequest(name, number, str(saved)), merged)
    return found


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="vLLM's LoRA kernels for GPUs take no float32, where alone tokens must be equal",
)
@pytest.mark.parametrize("mode", ["fused", "exact"])
def test_adapters_and_plans(mode, folder, adapters, monkeypatch):
    monkeypatch.setenv("STEERFAST_MODE", mode)
    ids = prompt()
    asked = [(name, key) for key in KEYS for name in adapters]
    wanted = {(name, key): adapters[name][1].tokens(ids, PLANS[key]) for name, key in asked}
    assert len({tuple(each) for each in wanted.values()}) == len(asked)  # every pair shows
    with engine(folder, processes=True, **OPTIONS) as llm:
        assert armed(llm)["mode"] == mode

        def ask(prompts, pairs):
            outs = answers(
                llm,
                prompts,
                [sampling(PLANS[key]) for _, key in pairs],
                [adapters[name][0] for name, _ in pairs],
            )
            for (name, key), each, out in zip(pairs, prompts, outs, strict=True):
                assert tokens(out) == adapters[name][1].tokens(each, PLANS[key]), (name, key)
            return [out.num_cached_tokens for out in outs]

        for name, key in asked:  # alone; one prompt, which nobody may take from another
            cached = 128 if key == "generated" else 0  # of "unsteered", with the same adapter
            assert ask([ids], [(name, key)]) == [cached], (name, key)
        # Together, each at a length of its own: on blocks that each has left above, and from the beginning.
        prompts = [ids[: len(ids) - 3 * place] for place in range(len(asked))]
        for (name, key), each, cached in zip(asked, prompts, ask(prompts, asked), strict=True):
            assert key in KEYS[-2:] or cached == (len(each) - 1) // 32 * 32, (name, key)
        assert llm.reset_prefix_cache()
        ask(prompts, asked)
        assert armed(llm)["slots_in_use"] == 0
