"""Models of known shapes with random weights, for what depends on sizes only."""

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
    # Others than Llamas have a model type. Of a tiny vocabulary, so that the layers are what a step costs.
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 512},
    "gemma-3-1b": {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "vocab_size": 512},
    "olmo-2-1b": {"model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16, "vocab_size": 512, "eos_token_id": None},
}  # fmt: skip


def random_model(shape: str, dtype: torch.dtype, layers: int | None = None) -> Any:
    """A model of a known shape, made where it will run; of another depth where ``layers`` says so."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = AutoConfig.for_model(**{"model_type": "llama", **sizes})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return AutoModelForCausalLM.from_config(config).eval()
        finally:
            torch.set_default_dtype(before)
