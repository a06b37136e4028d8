"""What extraction is compared with: one text at a time, unpadded, through plain hooks on a float64 copy of the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tiny_llama import byte_tokenizer

# A message a line. As Llama's do, it writes the BOS token.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def chat_tokenizer(template: str | None = TEMPLATE) -> Any:
    """A token a byte, BOS put in front of every text, and a chat template."""
    tokenizer = byte_tokenizer(bos_in_front=True)
    tokenizer.chat_template = template
    return tokenizer


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def byte_ids(text: str) -> list[int]:
    """The ids of text written out, special tokens and all."""
    return list(byte_tokenizer()(text)["input_ids"])


class Streams:
    """Every decoder layer's output for a text given as ids: [L, T, D] float64."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model).double().eval()

    @torch.no_grad()
    def __call__(self, ids: list[int]) -> torch.Tensor:
        found: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, args, out: found.append(out[0]))
            for layer in self.model.model.layers
        ]
        self.model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        return torch.stack(found)

    def last(self, text: str) -> torch.Tensor:
        """[L, D] at the last token of a text as it is written."""
        return self(byte_ids(text))[:, -1]

    def mean(self, before: str, text: str) -> torch.Tensor:
        """[L, D], the mean over the tokens (bytes) of a text that stands behind another."""
        return self(byte_ids(before + text))[:, len(byte_ids(before)) :].mean(1)


def assert_vector(vector: Any, wanted: torch.Tensor) -> None:
    """The vector's directions are wanted [L, D], to float32's last bits."""
    assert vector.layers == tuple(range(len(wanted)))
    for layer, direction in enumerate(wanted):
        torch.testing.assert_close(vector.at(layer).double(), direction, rtol=1e-4, atol=1e-5)


def forwards(model: Any) -> list[tuple[int, ...]]:
    """The shapes of the ids that the decoder is called with from now on."""
    shapes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes
