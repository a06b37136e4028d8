"""transformers' settings of continuous batching, by the names that the installed version has for them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import ContinuousBatchingConfig


def batching_config(page: int, **others: Any) -> ContinuousBatchingConfig:
    """With ``page`` tokens in a block of the cache: ``page_size``, which 5.17 calls ``block_size``."""
    names = {field.name for field in fields(ContinuousBatchingConfig)}
    name = "page_size" if "page_size" in names else "block_size"
    return ContinuousBatchingConfig(**{name: page}, **others)
