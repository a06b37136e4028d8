"""Llamas of known shapes with random weights, for what depends on sizes only."""

from __future__ import annotations

from typing import Any

import torch

SEED = 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 512},
    # Llama-2-7B's width and next to nothing else: what happens to the stream is what such a model costs.
    "thin": {"hidden_size": 4096, "intermediate_size": 8, "num_hidden_layers": 8, "num_attention_heads": 1, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0},
}  # fmt: skip


def random_model(shape: str, dtype: torch.dtype, layers: int | None = None) -> Any:
    """A Llama of a known shape, made where it will run; of another depth where ``layers`` says so."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        finally:
            torch.set_default_dtype(before)
