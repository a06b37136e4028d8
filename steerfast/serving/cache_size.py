"""How large the KV cache of ``generate_batch`` is: as its requests need, not as the machine allows.

Left to itself, transformers takes 60% of a CPU's memory, or 90% of a GPU's, before it looks at a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

# Tokens that the cache holds at most, unless one request alone is longer. On a CPU attention reads the cache of all
# running requests for each of them, so that more at once makes every one slower.
MOST_TOKENS_CPU, MOST_TOKENS = 16_384, 131_072
MOST_PROMPT_TOKENS = 2_048  # of one forward; longer prompts come in chunks
_ADMITTED = 0.85  # no prompt is begun while less than the rest of the cache is free


class Length(NamedTuple):
    """Tokens of one request: of its prompt, and at most of its answer."""

    prompt: int
    answer: int


class CacheSize(NamedTuple):
    """blocks: of the cache. together: requests that run at once. batch_tokens: of one forward."""

    blocks: int
    together: int
    batch_tokens: int


def cache_size(lengths: Sequence[Length], page: int, most_tokens: int) -> CacheSize:
    """Blocks of ``page`` tokens for as many of the longest requests as ``most_tokens`` hold, for one at least.

    Whichever run together then fit, and none is thrown out to be computed again.
    """
    # One token more: with asynchronous batching a step is prepared before the last answer is known.
    blocks = sorted((-(-(sum(one) + 1) // page) for one in lengths), reverse=True)
    together, held = 1, blocks[0]
    while together < len(blocks) and (held + blocks[together]) * page <= most_tokens:
        held += blocks[together]
        together += 1
    prompts = sum(sorted((one.prompt for one in lengths), reverse=True)[:together])
    spare = int(held / _ADMITTED) + 1 if together > 1 else held
    return CacheSize(spare, together, max(together, min(prompts, MOST_PROMPT_TOKENS)))


def sized_config(model: Any, lengths: Sequence[Length]) -> Any:
    """The ContinuousBatchingConfig that ``generate_batch`` uses where it is given none."""
    from transformers import ContinuousBatchingConfig

    config = ContinuousBatchingConfig()
    page = getattr(config, "page_size", None) or config.block_size  # as transformers 5.17 calls it
    size = cache_size(lengths, page, _most_tokens(model))
    config.num_blocks = size.blocks
    config.max_requests_per_batch = size.together
    config.max_batch_tokens = size.batch_tokens
    return config


def _most_tokens(model: Any) -> int:
    """The cap above, or what half of the free memory holds."""
    shape = model.config.get_text_config()
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    token = int(
        2 * shape.num_hidden_layers * shape.num_key_value_heads * head * model.dtype.itemsize
    )
    if model.device.type == "cuda":
        return min(MOST_TOKENS, torch.cuda.mem_get_info(model.device)[0] // 2 // token)
    import psutil

    return min(MOST_TOKENS_CPU, int(psutil.virtual_memory().available) // 2 // token)
