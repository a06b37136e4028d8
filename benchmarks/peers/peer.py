"""What a peer is asked to do, and what an adapter offers. The adapters are in the other files, the list in ``registry``.

An adapter imports its library inside its function: each environment has only some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Operation = Literal["add", "preserve", "ablate", "add_from"]
Call = Callable[..., Tensor]


class Task(NamedTuple):
    """Steering of one model at the output of some decoder layers, the same for every row.

        add        h + c v
        preserve   y |h| / |y|, y = h + c v
        ablate     h - <h, u> u, u = v / |v|
        add_from   h + c v where the token's position is start or later, else h

    vectors: layer -> [D], float32. coefficient: c.
    """

    operation: Operation
    vectors: dict[int, Tensor]
    coefficient: float = 1.0
    start: int = 0

    def like(self, model: nn.Module) -> dict[int, Tensor]:
        """The vectors in the model's dtype and on its device."""
        weight = next(model.parameters())
        return {layer: vector.to(weight) for layer, vector in self.vectors.items()}


def logits_of(model: Callable[..., Any]) -> Call:
    """The plain forward, for libraries that only change what happens inside it."""

    def call(input_ids: Tensor, **inputs: Any) -> Tensor:
        logits: Tensor = model(input_ids=input_ids, **inputs).logits
        return logits

    return call


@contextmanager
def plain(model: Any, tokenizer: Any) -> Iterator[Call]:
    """The model as it is: what a peer leaves of it that steers nothing."""
    yield logits_of(model)


@dataclass(frozen=True)
class Peer:
    """A way of steering.

    package: its name on PyPI, "" for what is written here. environment: see ``environments``.
    apply: (model, tokenizer, task) -> context manager that gives ``call(input_ids, attention_mask=None,
        position_ids=None, past_key_values=None, use_cache=None) -> logits [B, T, V]``, a forward of the
        steered model as that library does it; on exit the model is as it was.
    operations: those of Task that it has by itself. Another adapter may still be timed.
    per_row: whether each row of a batch can get its own steering.
    site: where it acts. note: how it works and what it cannot do, in a line.
    idle: (model, tokenizer) -> the same for the peer when it is installed and steers nothing. A peer that computes the
        model in its own way, steering or not, rounds in its own way too.
    """

    name: str
    package: str
    environment: str
    licence: str
    apply: Callable[[Any, Any, Task], AbstractContextManager[Call]]
    operations: frozenset[str]
    per_row: bool
    site: str
    note: str
    idle: Callable[[Any, Any], AbstractContextManager[Call]] = plain


@contextmanager
def removing(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are gone on exit."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
