"""The tiny Llama of all tests: random, float32, made in milliseconds; and a byte-level tokenizer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()  # what tests print is shown when they fail
BYTES = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # as byte_tokenizer numbers them


def tiny_llama(
    *,
    hidden: int = 64,
    layers: int = 4,
    vocabulary: int = 512,
    heads: int = 4,
    spread: float = 0.1,
    seed: int = 0,
    **config: Any,
) -> LlamaForCausalLM:
    """In eval mode. spread: of its weights; the greater, the more its tokens vary. No token ends a text."""
    torch.manual_seed(seed)
    sizes = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        initializer_range=spread,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, **config},
    )
    model = LlamaForCausalLM(sizes).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all ones would hide that a norm was computed with another's weight
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def byte_tokenizer(*, bos_in_front: bool = False) -> PreTrainedTokenizerFast:
    """A token a byte (258 in all); ``<s>`` is 0, and stands in front of every text if asked for; ``</s>`` is 1 and pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: n + 2 for n, letter in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos_in_front:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_tiny_llama(
    folder: Path, template: str | None = None, *, bos_in_front: bool = False, **knobs: Any
) -> Path:
    """A folder as ``--model FOLDER`` and servers take it; the tokenizer's chat template, or none."""
    tiny_llama(**{**BYTES, **knobs}).save_pretrained(folder)
    tokenizer = byte_tokenizer(bos_in_front=bos_in_front)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
