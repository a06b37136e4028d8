"""From a prompt to tokens: the chat template of instruct models, and a token to pad with."""

from __future__ import annotations

from typing import Any

import torch


def encode_prompt(tokenizer: Any, prompt: str, chat: bool | None = None) -> torch.Tensor:
    """Token ids [1, T]; with the chat template if the tokenizer has one (``chat=False``: never)."""
    use_template = getattr(tokenizer, "chat_template", None) is not None if chat is None else chat
    if use_template:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return ids  # type: ignore[no-any-return]


def pad_token(tokenizer: Any) -> int:
    """A token to pad with: the tokenizer's, else its end of sequence."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
