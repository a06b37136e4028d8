"""Room: what a table has of slots, bank rows and programs, and what is said where that is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from steerfast.errors import PlanTooLargeError, TableFullError
from steerfast.plans.fields import whole
from steerfast.table.packing import Cost

NAMES = ("slots", "bank_rows", "programs")  # as attach and Table take them


def room(num_layers: int, slots: int, bank_rows: int | None, programs: int | None) -> Cost:
    """What a table is made with. None: as much as every slot could need at one site a layer.

    TypeError for what is no integer, ValueError for no slots, no bank rows, or fewer programs than none.
    """
    each = whole("slots", slots) * (num_layers + 1)
    rows = each if bank_rows is None else whole("bank_rows", bank_rows)
    reading = each if programs is None else whole("programs", programs)
    there = Cost(whole("slots", slots), rows, reading)
    for what, least, name, given in zip(
        ("one slot", "one bank row", "0 programs"), (1, 1, 0), NAMES, there, strict=True
    ):
        if given < least:
            raise ValueError(f"a table needs at least {what}, got {name}={given}")
    return there


def check_room(need: Cost, used: Cost, there: Cost, plans: int) -> None:
    """TableFullError unless a need fits beside what so many plans use."""
    if all(one <= all_ - taken for one, taken, all_ in zip(need, used, there, strict=True)):
        return
    needed = ", ".join(f"{one} {name}" for one, name in zip(need, NAMES, strict=True))
    raise TableFullError(
        f"the table is full: the plan needs {needed} beside {plans} plans in use, but it was made with "
        f"{_made(used, there)}; attach with more"
    )


@contextmanager
def within(used: Cost, there: Cost) -> Iterator[None]:
    """A plan that needs more than a whole table has is a TableFullError."""
    try:
        yield
    except PlanTooLargeError as error:
        raise TableFullError(
            f"the table is full before it begins: {error}. It was made with {_made(used, there)}; or attach with more"
        ) from error


def _made(used: Cost, there: Cost) -> str:
    return ", ".join(
        f"{name}={all_} ({all_ - taken} free)"
        for name, taken, all_ in zip(NAMES, used, there, strict=True)
    )
