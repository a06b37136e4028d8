"""The typical norm of the residual stream per layer, from a stream of tokens in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor


class NormHistogram:
    """Norms per layer in logarithmic bins of 0.27%, so that a median needs no list of all tokens."""

    PER_OCTAVE, LOW, HIGH = 256, -24, 24  # 2^-24 .. 2^24

    def __init__(self, layers: int) -> None:
        bins = (self.HIGH - self.LOW) * self.PER_OCTAVE
        self.counts = torch.zeros((layers, bins), dtype=torch.int64)

    def add(self, layer: int, norms: Tensor) -> None:
        """norms: any shape, positive."""
        where = ((norms.double().log2() - self.LOW) * self.PER_OCTAVE).floor().long().flatten()
        self.counts[layer] += torch.bincount(
            where.clamp(0, self.counts.shape[1] - 1).cpu(), minlength=self.counts.shape[1]
        )

    def medians(self) -> dict[int, float]:
        """{layer: median norm}, at the middle of its bin; layers without tokens are left out."""
        found = {}
        for layer, counts in enumerate(self.counts):
            total = int(counts.sum())
            if total:
                where = int(torch.searchsorted(counts.cumsum(0), (total + 1) // 2))
                found[layer] = 2.0 ** (self.LOW + (where + 0.5) / self.PER_OCTAVE)
        return found

    def merged(self, other: NormHistogram) -> NormHistogram:
        both = NormHistogram(len(self.counts))
        both.counts = self.counts + other.counts
        return both
