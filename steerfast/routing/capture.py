"""Whether what runs here is being captured into a graph, which runs again without Python."""

from __future__ import annotations

import torch

from steerfast.errors import SteerfastError


def capturing() -> bool:
    """A CUDA graph is captured in the current stream: nothing may be read back, and what the host decides is decided for good."""
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return begun and torch.cuda.is_current_stream_capturing()


def check_written_before() -> None:
    """SteerfastError where tensors of the route would have to be written from the host while a graph is captured."""
    if capturing():
        raise SteerfastError(
            "a graph is being captured, and the route of a forward would have to be written from the host meanwhile, once for all "
            "replays; take the loop's step before the capture, or run a forward that has none once before, as a warm-up"
        )


class Captured:
    """What has been captured of a thread's bare forwards, as far as it matters to plans that come into use thereafter.

    any: something has. behind: a forward that may go on behind a cache.
    """

    def __init__(self) -> None:
        self.any = self.behind = False

    def note(self, begun: int | None) -> None:
        """One that begins behind so many tokens of a cache; None where nobody may look."""
        self.any = True
        self.behind = self.behind or begun != 0
