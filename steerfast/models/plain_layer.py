"""A decoder layer that runs as it is, and is steered behind its own forward: right whatever it does inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from steerfast.decoders.wiring import branch_of
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.forwards import Forwards
from steerfast.models.hand_over import KernelNorm
from steerfast.models.rebind import standing_in
from steerfast.plans.sites import site_index


class PlainLayer:
    """The ``forward`` of a layer whose wiring is not known."""

    def __init__(
        self, layer: Any, index: int, forwards: Forwards, original: Callable[..., Any]
    ) -> None:
        self.layer, self.forwards, self.original = layer, forwards, original
        parameters = list(inspect.signature(type(layer).forward).parameters)
        self.stream_name = parameters[1]
        self.site = site_index("resid_post", index)
        self.own_forward: Any = None
        self.next: KernelNorm | None = None
        self.enters = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own, whose first result is the stream."""
        self = standing_in(self)
        stream: Tensor = args[0] if args else kwargs[self.stream_name]
        now, _ = self.forwards.of_layer(stream)
        if self.enters:
            stream = self.forwards.ops.steer(stream, now.steering(0))
            now.measure(stream, 0)
            if args:
                args = (stream, *args[1:])
            else:
                kwargs[self.stream_name] = stream
        return steered_output(self.original(*args, **kwargs), self.site, now, self.forwards.ops)


def steered_output(output: Any, site: int, now: ForwardPass, ops: Any) -> Any:
    """What a layer returns, with its stream steered."""
    steered = ops.steer(branch_of(output), now.steering(site))
    now.measure(steered, site)
    if isinstance(output, Tensor):
        return steered
    return type(output)((steered, *output[1:]))
