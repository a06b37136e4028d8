"""Wiring: what a decoder layer does around its branches, as data. Patching, sweeps and reports read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

Constant = bool | str | None
Form = Literal["pre-norm", "post-norm", "sandwich", "plain"]


@dataclass(frozen=True)
class Step:
    """One residual step of a layer, ``h + scale * after(body(before(h)))``; its parts are named as the layer names them.

    before: the norm that reads the stream, or None. body: the mixer or the feed-forward; of a tuple that it returns, the
    first is the branch. after: what the branch goes through on its way back (a norm, dropout), in order. scale: the
    attribute of the layer that multiplies it, or None.
    stream: the body's keyword for what it reads, None where that comes first. arguments: (the body's keyword, the layer's
    argument that it is given). constants: keywords that are the same in every call. rest: keywords that the layer does
    not name are handed on.
    """

    before: str | None
    body: str
    after: tuple[str, ...] = ()
    scale: str | None = None
    stream: str | None = None
    arguments: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, Constant], ...] = ()
    rest: bool = False

    def formula(self) -> str:
        """``h + 0.22 post_attention_layernorm(self_attn(input_layernorm(h)))``, with names for numbers."""
        inside = "h" if self.before is None else f"{self.before}(h)"
        inside = f"{self.body}({inside})"
        for name in self.after:
            inside = f"{name}({inside})"
        return f"h + {inside}" if self.scale is None else f"h + {self.scale} * {inside}"


@dataclass(frozen=True)
class Wiring:
    """A layer: its residual steps in order, then a factor on the stream.

    steps: two (``resid_mid`` is the stream between them) or one. factor: the attribute that multiplies the stream behind
    the last step, or None. in_tuple: the layer returns its stream as a tuple of one. untried: arguments of the layer that
    no body takes and that it was never given; given one of them (the states of an encoder), it is run as it is.
    """

    steps: tuple[Step, ...]
    factor: str | None = None
    in_tuple: bool = False
    untried: tuple[str, ...] = ()

    @property
    def has_mid(self) -> bool:
        """Whether there is a stream between two steps."""
        return len(self.steps) == 2

    @property
    def form(self) -> Form:
        """By where the first step has norms: something before the branch, something behind it."""
        step = self.steps[0]
        behind = any("drop" not in name for name in step.after)
        if step.before is not None:
            return "sandwich" if behind else "pre-norm"
        return "post-norm" if behind else "plain"

    def __str__(self) -> str:
        lines = [f"h = {step.formula()}" for step in self.steps]
        if self.factor is not None:
            lines.append(f"h = {self.factor} * h")
        return "; ".join(lines)

    def as_json(self) -> dict[str, Any]:
        """What ``wiring_from`` takes."""
        return asdict(self)


def wiring_from(data: Mapping[str, Any]) -> Wiring:
    """The inverse of ``Wiring.as_json``, also behind JSON, which has lists for tuples."""

    def step(one: Mapping[str, Any]) -> Step:
        pairs = {name: tuple(map(tuple, one[name])) for name in ("arguments", "constants")}
        return Step(**{**one, "after": tuple(one["after"]), **pairs})

    steps = tuple(map(step, data["steps"]))
    return Wiring(steps, data["factor"], data["in_tuple"], tuple(data["untried"]))


def branch_of(output: Any) -> Tensor:
    """What a body returns as its branch: itself, or the first of several."""
    branch: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return branch


class Body:
    """A step's modules of one layer, bound: ``run(normed, given)`` is the branch, scaled. Runs at every step of a model, and so
    keeps at hand what it needs."""

    def __init__(self, layer: Any, step: Step) -> None:
        self.layer, self.step = layer, step
        self.alone = step.stream is None and not (step.arguments or step.constants or step.rest)

    def run(self, normed: Tensor, given: Mapping[str, Any], rest: Mapping[str, Any]) -> Tensor:
        """given: the layer's arguments by name. rest: those that it was given beyond its own."""
        step, parts = self.step, self.layer._modules
        if self.alone:
            output = parts[step.body](normed)
        else:
            keywords: dict[str, Any] = {name: given[source] for name, source in step.arguments}
            if step.constants:
                keywords.update(step.constants)
            if rest and step.rest:
                keywords.update(rest)
            if step.stream is None:
                output = parts[step.body](normed, **keywords)
            else:
                keywords[step.stream] = normed
                output = parts[step.body](**keywords)
        branch: Tensor = output if isinstance(output, Tensor) else output[0]
        for name in step.after:
            branch = parts[name](branch)
        return branch if step.scale is None else branch * getattr(self.layer, step.scale)
