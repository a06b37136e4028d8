"""Selectors and schedules as JSON: where a term acts, and how strongly a plan does."""

from __future__ import annotations

from typing import Any

from steerfast.plans.schedule import Schedule
from steerfast.plans.selectors import AfterSequence, First, Positions, Select


def select_to_json(select: Select) -> str | dict[str, Any]:
    """A name, or {"positions": [start, stop]}, {"after_sequence": [ids]}, {"first": n}."""
    if isinstance(select, str):
        return select
    if isinstance(select, Positions):
        return {"positions": [select.start, select.stop]}
    if isinstance(select, AfterSequence):
        return {"after_sequence": list(select.tokens)}
    return {"first": select.count}


def select_from_json(data: object) -> Select:
    """The selector of its JSON form; ValueError for anything else (of a name, when the term is made)."""
    if isinstance(data, str):
        return data  # type: ignore[return-value]
    if isinstance(data, dict) and len(data) == 1:
        ((kind, value),) = data.items()
        try:
            if kind == "positions" and isinstance(value, list) and len(value) in (1, 2):
                return Positions(*value)
            if kind == "after_sequence" and isinstance(value, list):
                return AfterSequence(tuple(value))
            if kind == "first":
                return First(value)
        except TypeError as error:
            raise ValueError(f"selector {data!r} cannot be read: {error}") from error
    raise ValueError(
        f"a selector is a name, {{'positions': [start, stop]}}, {{'after_sequence': [ids]}} or {{'first': n}}, got "
        f"{str(data)[:80]!r}"
    )


def schedule_from_json(data: object) -> Schedule:
    """The schedule of its points, [[t - P, gain], ...]; ValueError for anything else."""
    if not isinstance(data, list) or not all(isinstance(at, list) and len(at) == 2 for at in data):
        raise ValueError(f"a schedule is a list of [t - P, gain], got {str(data)[:80]!r}")
    try:
        return Schedule(tuple((offset, gain) for offset, gain in data))
    except TypeError as error:
        raise ValueError(f"a schedule cannot be read: {error}") from error
