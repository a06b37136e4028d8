"""What compiled code calls: ops that find, as they run, the thread that runs them and what is in use there.

So a graph guards on no plan and on no thread. Who is attached is known by a number, a constant of the graph.
"""

from __future__ import annotations

import weakref
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.routing.inputs import Inputs
from steerfast.routing.route import Rows

_keys = count()


class Steered(Protocol):
    """An attached model, for its compiled forwards."""

    def compiled_route(self, inputs: Inputs) -> tuple[Rows, bool]:
        """The route of the forward that begins, and whether it would have to read the prompt first."""

    def compiled_layer(self, stream: Tensor) -> Rows:
        """The route of the forward in progress, of which a layer is compiled by itself."""

    def compiled_measure(self, stream: Tensor, site: int) -> Tensor:
        """Let conditions read the stream; returns the gains [N] with what is decided now."""


by_key: weakref.WeakValueDictionary[int, Steered] = weakref.WeakValueDictionary()


def key_of(steered: Steered) -> int:
    """A number for an attached model, by which its compiled forwards find it."""
    key = next(_keys)
    by_key[key] = steered
    return key


def _route(
    like: Tensor,
    tokens: Tensor | None,
    mask: Tensor | None,
    position_ids: Tensor | None,
    seen: Tensor,
    mask_kind: str,
    key: int,
) -> tuple[Tensor, ...]:
    begun: int | Tensor | None = int(seen) if seen.device.type == "cpu" else seen
    if isinstance(begun, int) and begun < 0:
        begun = None
    inputs = Inputs(like, tokens, mask, position_ids, begun, mask_kind)
    rows, reads_first = by_key[key].compiled_route(inputs)
    if reads_first:
        raise SteerfastError(
            "a plan has a condition, and this compiled forward holds the prompt and tokens behind it, which depend on "
            "what the prompt decides; run the prompt as a forward of its own, or do not compile"
        )
    return tuple(line.clone() for line in rows)  # what an op returns is its own


def _fake_route(like: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rows = like.shape[0] * like.shape[1]
    whole = [like.new_empty(rows, dtype=torch.int32) for _ in range(3)]
    gains = [like.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return whole[0], gains[0], whole[1], whole[2], gains[1]


def _layer(stream: Tensor, key: int) -> tuple[Tensor, ...]:
    return tuple(line.clone() for line in by_key[key].compiled_layer(stream))


def _measure(stream: Tensor, site: int, gain: Tensor, anchor: Tensor, key: int) -> Tensor:
    return by_key[key].compiled_measure(stream, site).clone()


# What these ops find depends on more than their arguments: a graph of CUDA's has to go around them, so that they run each time.
_APART = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
_library: Any = torch.library.Library("steerfast", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "route(Tensor like, Tensor? tokens, Tensor? mask, Tensor? position_ids, Tensor seen, str mask_kind, "
    "int key) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_APART,
)
_library.impl("route", _route, "CompositeExplicitAutograd")
torch.library.register_fake("steerfast::route", _fake_route, lib=_library)
_library.define(
    "layer(Tensor stream, int key) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", tags=_APART
)
_library.impl("layer", _layer, "CompositeExplicitAutograd")
torch.library.register_fake("steerfast::layer", _fake_route, lib=_library)
# What a measurement writes belongs to the thread, and no graph knows it: it is said to write ``anchor``, so that no compiler
# drops it; gains go in and out, which keeps the order.
_library.define(
    "measure(Tensor stream, int site, Tensor gain, Tensor(a!) anchor, int key) -> Tensor",
    tags=_APART,
)
_library.impl("measure", _measure, "CompositeExplicitAutograd")
torch.library.register_fake(
    "steerfast::measure",
    lambda stream, site, gain, anchor, key: torch.empty_like(gain),
    lib=_library,
)
route: Any = torch.ops.steerfast.route.default
layer: Any = torch.ops.steerfast.layer.default
measure: Any = torch.ops.steerfast.measure.default
