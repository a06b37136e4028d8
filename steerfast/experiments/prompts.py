"""From a prompt to tokens: the chat template of instruct models, and a token to pad with."""

from __future__ import annotations

from typing import Any

import torch

from steerfast.models.tokens import Prompt, token_ids


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool | None = None) -> torch.Tensor:
    """Token ids [1, T]; text is put through the chat template if the tokenizer has one (``chat=False``: never)."""
    use_template = getattr(tokenizer, "chat_template", None) is not None if chat is None else chat
    if use_template and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return torch.tensor([token_ids(tokenizer, prompt)])


def pad_token(tokenizer: Any) -> int:
    """A token to pad with: the tokenizer's, else its end of sequence."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
