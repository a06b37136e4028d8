"""``steerfast::route``: the route of a forward as an opaque op, so that compiled code guards on no plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.routing.routing import by_key


def _route(
    like: Tensor,
    tokens: Tensor | None,
    mask: Tensor | None,
    position_ids: Tensor | None,
    seen: Tensor,
    mask_kind: str,
    in_generate: bool,
    key: int,
) -> tuple[Tensor, ...]:
    """``Routing.bare`` as an op: compiled code calls it and knows nothing of plans, so none recompiles it."""
    begun: int | Tensor = int(seen) if seen.device.type == "cpu" else seen
    routing = by_key[key]
    rows = routing.bare(like, tokens, mask, position_ids, begun, mask_kind, in_generate)
    if routing.measure_first:
        raise SteerfastError(
            "a plan has a condition, and this compiled forward holds the prompt and tokens behind it, which depend on "
            "what the prompt decides; run the prompt as a forward of its own, or do not compile"
        )
    return tuple(line.clone() for line in rows)  # what an op returns is its own


def _fake_bare(like: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rows = like.shape[0] * like.shape[1]
    whole = [like.new_empty(rows, dtype=torch.int32) for _ in range(3)]
    gains = [like.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return whole[0], gains[0], whole[1], whole[2], gains[1]


_library: Any = torch.library.Library("steerfast", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "route(Tensor like, Tensor? tokens, Tensor? mask, Tensor? position_ids, Tensor seen, str mask_kind, "
    "bool in_generate, int key) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("route", _route, "CompositeExplicitAutograd")
torch.library.register_fake("steerfast::route", _fake_bare, lib=_library)
route_op: Any = torch.ops.steerfast.route.default
