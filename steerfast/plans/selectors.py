"""Selectors: which tokens a term acts on, by absolute position t and prompt length P.

    all                 every token                 prompt              t < P
    generated           t >= P                      after_prompt        t >= P - 1
    last_prompt_token   t = P - 1                   Positions(a, b)     a <= t < b
    AfterSequence(ids)  from the last token of the last occurrence of ids in the prompt
    First(n)            t < n; with a positional vector, position t gets its row t

The first sampled token comes from position P - 1, so ``generated`` leaves it alone and ``after_prompt``
does not. Whatever the selector, it is an interval between two **cuts**: a place in the request, and an
offset from it. Padding has no position and is never steered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from steerfast.plans.fields import whole, wholes

Named = Literal["all", "prompt", "generated", "after_prompt", "last_prompt_token"]
PromptEnd = Literal["prompt_end"]


@dataclass(frozen=True)
class Positions:
    """start <= t < stop. Negative numbers count from P (-3 is P - 3), ``"prompt_end"`` is P itself.

    stop: None, without end. ``Positions(-4, "prompt_end")`` is the last four tokens of the prompt.
    Raises TypeError for other types, ValueError where two bounds of the same kind are out of order.
    """

    start: int | PromptEnd
    stop: int | PromptEnd | None = None

    def __post_init__(self) -> None:
        for name, bound in (("start", self.start), ("stop", self.stop)):
            if bound == "prompt_end" or (name == "stop" and bound is None):
                continue
            object.__setattr__(self, name, whole(f"{name} of Positions, or 'prompt_end',", bound))
        first, last = span(self)
        if last is not None and first.origin == last.origin and first.offset >= last.offset:
            raise ValueError(f"{self} selects nothing: it ends where it starts, or before")


@dataclass(frozen=True)
class AfterSequence:
    """From the final token of the last occurrence of these token ids in the prompt, that token included.

    For a chat template: the ids of ``[/INST]`` steer the answer and nothing of the question. A prompt
    without them is an error when the request starts, not an unsteered request.
    """

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        tokens = wholes("a token id of a sequence", self.tokens)
        if not tokens or min(tokens) < 0:
            raise ValueError(f"a sequence is one or more token ids, got {self.tokens!r}")
        object.__setattr__(self, "tokens", tokens)


@dataclass(frozen=True)
class First:
    """t < count. Of a positional vector ([T, D] a layer, count <= T), position t gets its row t."""

    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole("the number of positions of First", self.count))
        if self.count < 1:
            raise ValueError(f"First takes a number of positions from 1, got {self.count!r}")


Select = Named | Positions | AfterSequence | First


class Cut(NamedTuple):
    """A position of a request: ``offset`` from its start, its prompt's end, or a sequence's final token."""

    origin: Literal["start", "prompt_end"] | tuple[int, ...]
    offset: int = 0


_SPANS: dict[str, tuple[Cut, Cut | None]] = {
    "all": (Cut("start"), None),
    "prompt": (Cut("start"), Cut("prompt_end")),
    "generated": (Cut("prompt_end"), None),
    "after_prompt": (Cut("prompt_end", -1), None),
    "last_prompt_token": (Cut("prompt_end", -1), Cut("prompt_end")),
}


def span(select: Select) -> tuple[Cut, Cut | None]:
    """The cuts between which a selector acts: from the first to before the second (None: no end)."""
    if isinstance(select, str):
        return _SPANS[select]
    if isinstance(select, AfterSequence):
        return Cut(select.tokens), None
    if isinstance(select, First):
        return Cut("start"), Cut("start", select.count)
    return _bound(select.start), None if select.stop is None else _bound(select.stop)


def _bound(value: int | PromptEnd) -> Cut:
    if value == "prompt_end":
        return Cut("prompt_end")
    return Cut("prompt_end" if value < 0 else "start", value)


def final_token(prompt: Sequence[int], sequence: tuple[int, ...]) -> int:
    """Where the last occurrence of ``sequence`` in a prompt ends; ValueError where there is none."""
    # As text, backwards: its search takes a time of the order of both lengths, whatever stands in them.
    letters = {token: chr(1 + number) for number, token in enumerate(dict.fromkeys(sequence))}
    text, sought = (
        "".join([letters.get(token, "\0") for token in reversed(each)])
        for each in (prompt, sequence)
    )
    behind = text.find(sought)
    if behind >= 0:
        return len(text) - 1 - behind
    shown = str(list(sequence)) if len(sequence) <= 32 else f"{list(sequence[:32])}..."
    raise ValueError(
        f"a plan acts after the token sequence {shown}, which the prompt of {len(text)} tokens "
        "does not contain; tokenize the sequence as it stands inside the prompt"
    )


def check_select(select: object) -> None:
    """ValueError unless it is a selector."""
    if isinstance(select, (Positions, AfterSequence, First)):
        return
    if not isinstance(select, str) or select not in get_args(Named):
        known = ", ".join(
            (*get_args(Named), "Positions(start, stop)", "AfterSequence(ids)", "First(n)")
        )
        raise ValueError(f"unknown selector {select!r}; known: {known}")
