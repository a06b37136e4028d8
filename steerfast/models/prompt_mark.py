"""A mark on a cache: which reading of prompts by conditions it holds.

What conditions decided is kept by thread, for the prompts that were read last. A loop of one's own that goes on with a cache of
others, as where two take turns, would act on those; the mark tells them apart. A copy of a cache carries it along.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from steerfast.decoders.caches import cache_of
from steerfast.errors import SteerfastError

_MARK = "_steerfast_prompts"
_readings = count(1)


def check_mark(cache: Any, reading: int) -> None:
    """SteerfastError for a cache of other prompts than conditions have read last, or one that nothing can be told of."""
    if not hasattr(cache, "__dict__"):
        raise SteerfastError(
            f"a plan has a condition, and this forward goes on with a {type(cache).__name__}, of which it is not known whose "
            "prompts it holds; call generate, or run the loop in handle.generating(ids, mask)"
        )
    if getattr(cache, _MARK, reading) != reading:
        raise SteerfastError(
            "a plan has a condition, and this cache is of other prompts than those that were read last, whose verdicts are gone; "
            "finish one loop before the next, run them in threads or tasks of their own, or use handle.generating(...)"
        )


def mark(output: Any) -> int:
    """Mark the cache that a forward over new prompts returns, if it does; the reading that it is of."""
    reading = next(_readings)
    cache = cache_of(output)
    if hasattr(cache, "__dict__"):  # else no cache of transformers
        setattr(cache, _MARK, reading)
    return reading
