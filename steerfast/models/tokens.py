"""The token ids of a text, with one BOS: a chat template writes it, and most tokenizers add another."""

from __future__ import annotations

from typing import Any


def token_ids(tokenizer: Any, text: str, **how: Any) -> list[int]:
    """``tokenizer(text, **how)["input_ids"]``, without a second BOS where the text begins with one."""
    ids = list(tokenizer(text, **how)["input_ids"])
    return ids[doubled_bos(tokenizer, text, ids) :]


def doubled_bos(tokenizer: Any, text: str, ids: list[int]) -> int:
    """1 where the text begins with the BOS token and the tokenizer has put another in front of it, else 0."""
    bos = getattr(tokenizer, "bos_token", None)
    if not bos or not text.startswith(bos) or len(ids) < 2:
        return 0
    return int(ids[0] == ids[1] == tokenizer.bos_token_id)
