"""Caches, by whatever name a model takes them, and how many tokens they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The arguments and results of transformers' models that hold what came before.
NAMES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


def cache_of(given: Any) -> Any:
    """The cache among a forward's arguments, or in what it returned; None where there is none."""
    if isinstance(given, Mapping):
        return next((given[name] for name in NAMES if given.get(name) is not None), None)
    found = named_cache(given)
    return None if found is None else found[1]


def named_cache(output: Any) -> tuple[str, Any] | None:
    """(name, cache) of what a forward returned."""
    found = ((name, getattr(output, name, None)) for name in NAMES)
    return next((pair for pair in found if pair[1] is not None), None)


def without_cache(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward is given beside, to run it without any."""
    return {**dict.fromkeys(name for name in NAMES if name in given), "use_cache": False}


def tokens_in(cache: Any) -> Any:
    """An integer, or a tensor of a static cache, which keeps it on the device; None of one that does not say: of a state
    space there is nothing to count."""
    if cache is None:
        return 0
    count = getattr(cache, "get_seq_length", None)
    if count is None:
        return None
    try:
        return count()
    except ValueError:  # all of its layers are linear
        return 0 if _is_new(cache) else None


def _is_new(cache: Any) -> bool:
    """Nothing has been put into it."""
    try:
        return not cache.has_previous_state()
    except (AttributeError, ValueError):
        return False
