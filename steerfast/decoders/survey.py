"""Survey: what is known of a decoder's layers, and how. ``attach`` patches by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from steerfast.decoders.norms import NormForm
from steerfast.decoders.wiring import Wiring
from steerfast.plans.sites import site_index


@dataclass(frozen=True)
class Found:
    """A layer. wiring: None where it is steered behind its own forward, because of ``reason``. returns_tuple: what it
    returns has the stream first. returns_more: and something else that is handed on."""

    wiring: Wiring | None
    reason: str = ""
    returns_tuple: bool = False
    returns_more: bool = False


@dataclass(frozen=True)
class Survey:
    """layers: one by one. norm: the decoder's name for what makes its result of the last layer's stream, or None.
    norm_form: what that computes, if it is known. forms: what norms of a class compute. embedded: the embedding's stream
    enters the first layer as it is. by: how this is known."""

    layers: tuple[Found, ...]
    norm: str | None
    norm_form: NormForm | None = None
    forms: Mapping[type, NormForm] = field(default_factory=dict)
    embedded: bool = False
    by: Literal["proof", "class"] = "proof"

    @property
    def fused(self) -> int:
        """How many layers have a wiring."""
        return sum(found.wiring is not None for found in self.layers)

    def summary(self) -> list[str]:
        """A line for each way in which layers are steered, with the layers: ``layers 0..3: pre-norm, fused``."""
        lines = []
        for (form, reason), numbers in self._alike().items():
            how = f"{form}, fused" if not reason else f"behind the layer, un-fused: {reason}"
            lines.append(f"layers {ranges(numbers)}: {how}")
        return lines

    def _alike(self) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = {}
        for number, one in enumerate(self.layers):
            form = "" if one.wiring is None else one.wiring.form
            found.setdefault((form, one.reason), []).append(number)
        return found


def ranges(numbers: list[int]) -> str:
    """``0..3, 5``: ascending numbers, for people."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def closed_sites(found: Survey) -> dict[int, str]:
    """{site that a model does not have: why}, in words that go on after the site's name."""
    closed = {}
    for layer, one in enumerate(found.layers):
        if one.wiring is None:
            closed[site_index("resid_mid", layer)] = (
                f"which is steered nowhere: layer {layer} is steered behind its own forward, because {one.reason}"
            )
        elif not one.wiring.has_mid:
            closed[site_index("resid_mid", layer)] = (
                f"which there is not: layer {layer} is one residual step, {one.wiring}"
            )
    return closed
