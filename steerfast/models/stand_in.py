"""StandIn: what stands in for a method of a model, with its signature; transformers inspects that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from steerfast.models.attachment import Attachment


class StandIn:
    """shared: what the model is attached by. original: the bound method."""

    def __init__(self, shared: Attachment, original: Callable[..., Any]) -> None:
        self.shared, self.original = shared, original
        self.__signature__ = inspect.signature(original)

    def __reduce__(self) -> tuple[Any, ...]:
        """Signatures cannot be pickled; and the model that this is found on leads back here, so it comes first, then its parts."""
        return object.__new__, (type(self),), (self.shared, self.original)

    def __setstate__(self, parts: tuple[Attachment, Callable[..., Any]]) -> None:
        StandIn.__init__(self, *parts)
