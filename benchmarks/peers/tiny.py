"""The small random Llama on which libraries are compared, and a tokenizer for those that insist on one."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 1000


def tiny_llama(seed: int = 0) -> Any:
    """D = 256, 8 layers, float32, random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> Any:
    """One word a token: "w0 w1 ..."."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="w0", eos_token="w1", pad_token="w1", unk_token="w2"
    )
