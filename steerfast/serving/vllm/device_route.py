"""The route of a ragged batch, found on the device: for runners whose host does not know positions exactly.

With drafts under asynchronous scheduling the host assumes that all of them were accepted; the device corrects itself while
it prepares the step. So here the rows come from the positions tensor that the model itself will read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerfast.routing.itinerary import Itinerary
from steerfast.routing.route import Route, Rows, padded
from steerfast.routing.router import NO_SEAT
from steerfast.table.entry import UNSTEERED


class DeviceRoute(Route):
    """Itineraries by seat, on the device; seats beyond those given are not steered."""

    def set(self, seat: int, one: Itinerary) -> None:
        """Give one seat its itinerary."""
        with torch.inference_mode(False):
            for name, values in padded([one]).items():
                getattr(self, name)[seat].copy_(torch.from_numpy(values[0]))

    def grown(self, seats: int) -> DeviceRoute:
        """The same with more seats."""
        more = DeviceRoute(self.device, seats)
        with torch.inference_mode(False):
            for name in Itinerary._fields:
                getattr(more, name)[: self.seats] = getattr(self, name)
        return more

    def rows(self, seats: Tensor, positions: Tensor, scheduled: bool) -> Rows:
        """The route of N rows: ``seats`` and ``positions`` [N] int64, seat -1 for rows that belong to nobody.

        scheduled: whether any live plan has a schedule; without one all gains are 1 and nothing is looked up.
        """
        request, at = seats.clamp(min=0), positions[:, None]
        place = torch.searchsorted(self.starts[request], at, right=True) - 1
        slot = self.slots[request].gather(1, place.clamp(min=0))
        steered = (seats >= 0)[:, None] & (place >= 0)
        gain = torch.ones_like(positions, dtype=torch.float32)
        if scheduled:
            gain = self._gain(request, at).to(torch.float32)[:, 0]
        return Rows(
            torch.where(steered, slot, UNSTEERED).to(torch.int32)[:, 0],
            gain,
            torch.where(seats >= 0, seats, NO_SEAT).to(torch.int32),
            positions.clamp(0, 2**31 - 1).to(torch.int32),
            gain.clone(),
        )
