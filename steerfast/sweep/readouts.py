"""What a sweep reads of each prompt: the answer that comes next, or how well its own tokens are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 25  # numbers of a [rows, vocabulary] block


class NextAnswer:
    """The next token, and the log-probabilities (nats) of two candidates.

    candidates: (token id, token id) of each prompt: the matching and the other answer. Columns: the most
    probable token's id, log p(first), log p(second). Logits are formed in the model's dtype and read in float32.
    """

    last_only = True
    width = 3

    def __init__(self, head: Any, candidates: Sequence[tuple[int, int]]) -> None:
        self.head = head
        self.candidates = torch.tensor(candidates)

    def __call__(self, normed: Tensor, prompts: Sequence[int]) -> Tensor:
        wanted = self.candidates[torch.tensor(prompts)].to(normed.device)
        parts = []
        for rows, both in zip(*_blocks(self.head, normed[:, -1], wanted), strict=True):
            logits = self.head(rows).float()
            chances = logits.gather(1, both) - logits.logsumexp(1, keepdim=True)
            parts.append(torch.cat([logits.argmax(1, keepdim=True).to(chances), chances], 1))
        return torch.cat(parts)


class NextTokens:
    """How a text's own tokens are predicted, token t + 1 from t: columns tokens, top-1 hits, top-10 hits, and the
    summed log-probability (nats).

    ids: the tokens of each prompt. A token counts as hit if fewer than k others have a greater logit.
    """

    last_only = False
    width = 4

    def __init__(self, head: Any, ids: Sequence[Sequence[int]]) -> None:
        self.head = head
        self.ids = [torch.tensor(each) for each in ids]

    def __call__(self, normed: Tensor, prompts: Sequence[int]) -> Tensor:
        result = torch.zeros((len(prompts), self.width), dtype=torch.float64)
        counts = torch.tensor([len(self.ids[prompt]) - 1 for prompt in prompts])
        kept = torch.arange(normed.shape[1])[None] < counts[:, None]
        targets = torch.cat([self.ids[prompt][1:] for prompt in prompts]).to(normed.device)
        owner = kept.nonzero()[:, 0]
        rows = normed[kept.to(normed.device)]
        parts = []
        for block, target in zip(*_blocks(self.head, rows, targets), strict=True):
            logits = self.head(block).float()
            own = logits.gather(1, target[:, None])
            rank = (logits > own).sum(1)
            chance = own[:, 0] - logits.logsumexp(1)
            sound = chance.isfinite()  # beside a NaN nothing is greater, which is no hit
            hits = torch.stack(
                [torch.ones_like(chance), sound & (rank < 1), sound & (rank < 10), chance], 1
            )
            parts.append(hits.double().cpu())
        return result.index_add_(0, owner, torch.cat(parts))


class Accuracy(NamedTuple):
    """Next-token prediction over texts, token-weighted: shares of tokens, and nats per token."""

    tokens: int
    top1: float
    top10: float
    loss: float

    @classmethod
    def of(cls, columns: Tensor) -> Accuracy:
        """From the columns of ``NextTokens``, [texts, 4]."""
        tokens, top1, top10, chance = columns.sum(0).tolist()
        return cls(int(tokens), top1 / tokens, top10 / tokens, -chance / tokens)


def _blocks(head: Any, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Rows in blocks whose logits stay small."""
    size = max(1, LOGITS_AT_ONCE // int(head.out_features))
    return [torch.split(tensor, size) for tensor in tensors]
