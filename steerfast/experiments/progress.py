"""How a study tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[], None]
Stage = Callable[[str, int], Advance]  # (what, how many steps) -> to be called after each of them
