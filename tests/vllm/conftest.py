"""Real engines of vLLM over a tiny Llama in float32, and what transformers says with the same plans.

Run by `make test-serving`, in an environment with vLLM; elsewhere everything here is skipped. Engines start in
fifteen seconds and more, so that each test file starts as few as it can.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# Before vLLM is imported, here and in the processes that it starts.
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "STEERFAST_INLINE": "1",
    "STEERFAST_MAX_PLAN_BYTES": "1000000",
    "STEERFAST_DOSE_WARN": "1e9",
}


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """Compiled artefacts of these tests only."""
    os.environ.setdefault("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A saved Llama whose greedy tokens vary (4 layers, D = 256, 512 tokens), with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: n + 2 for n, letter in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def oracle(folder):
    """tokens(prompt, plan, count): what transformers generates greedily, patched; computed once for equal arguments."""
    from engines import Oracle

    return Oracle(folder)


def pytest_sessionstart(session):
    """Metadata of another build that lies in the way would leave every engine unarmed."""
    from importlib.metadata import entry_points

    if importlib.util.find_spec("vllm") and not entry_points(
        group="vllm.general_plugins", name="steerfast"
    ):
        pytest.exit(
            "vLLM sees no plugin named steerfast: run `make test-serving`, and remove steerfast.egg-info",
            2,
        )
