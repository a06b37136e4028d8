"""Which slot and which gain a row reads, in every forward.

An itinerary is a plan over one prompt: the slot from each position on. Routes look up a batch of them, on the device or on
the host; verdicts say what conditions decided. Behind it stand a bare forward, ``generate``, or a packed batch of an engine.
"""

from steerfast.routing.itinerary import Itinerary, itinerary
from steerfast.routing.packed import PackedRequests
from steerfast.routing.route import Route, RowBuffers, Rows
from steerfast.routing.routing import Routing
from steerfast.routing.verdicts import Verdicts

__all__ = [
    "Itinerary",
    "PackedRequests",
    "Route",
    "Routing",
    "RowBuffers",
    "Rows",
    "Verdicts",
    "itinerary",
]
