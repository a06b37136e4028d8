"""The exceptions of the package, for states; bad arguments are ValueError or TypeError."""

from __future__ import annotations


class SteerfastError(RuntimeError):
    """The package or the model is in a state in which the call cannot be honoured.

    Raised, for example, when a model is attached twice, when a backend asked for by name was not
    built, or when a forward pass gives no way to tell the positions of its tokens. Wrong arguments
    raise ``ValueError`` or ``TypeError`` instead.
    """


class TableFullError(SteerfastError):
    """Plans in use fill the table: release one, or attach with more room. A server waits instead."""


class PlanTooLargeError(ValueError):
    """A plan needs more than a whole table holds, of what ``what`` says: slots, rows or programs."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
