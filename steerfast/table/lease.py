"""Lease: plans in a table, held for as long as anybody steers by them, in whatever thread.

``use`` takes one. A generation that began under it holds on to it, so that it ends as it began though the ``use`` is over;
and what a forward reads is never rewritten while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from steerfast.errors import TableFullError
from steerfast.plans.plan import Plan
from steerfast.table.entry import Entry
from steerfast.table.table import Table


class Lease:
    """The entries of a list of plans (None: not steered), all of them or an error and none.

    ``entries`` is another tuple after every change.
    """

    def __init__(self, table: Table, plans: Sequence[Plan | None]) -> None:
        self._table = table
        self.entries = _acquire(table, plans)
        self._holders = 1
        self._readers = 0  # forwards in progress
        self._replaced: list[Entry | None] = []  # which those may read still

    def hold(self) -> bool:
        """One more holds it, and gives it back; False where the last one has."""
        with self._table.lock:
            if self._holders == 0:
                return False
            self._holders += 1
            return True

    def give_back(self) -> None:
        """The last one releases the entries."""
        with self._table.lock:
            self._holders -= 1
            if self._holders == 0:
                _release(self._table, self.entries)

    def begin_reading(self) -> tuple[Entry | None, ...] | None:
        """A forward begins; until it ends, nothing that these entries stand for is rewritten. None where nobody holds them."""
        with self._table.lock:
            if not self.hold():
                return None
            self._readers += 1
            return self.entries

    def end_reading(self) -> None:
        """It has ended."""
        with self._table.lock:
            self._readers -= 1
            if self._readers == 0:
                _release(self._table, self._replaced)
                self._replaced = []
                self._table.lock.notify_all()
            self.give_back()

    def change(self, plans: Sequence[Plan | None], in_place: bool = True) -> None:
        """Hold these plans instead. Where the table has no room for both, a plan takes the place of the other, once no
        forward reads that (not from inside of one: ``in_place`` must be False there).

        Raises as ``Table.acquire`` does; nothing has changed then.
        """
        try:
            entries = _acquire(self._table, plans)
        except TableFullError:
            if not in_place or len(plans) > 1 or plans[0] is None or self.entries[0] is None:
                raise
            self._exchange(plans[0])
            return
        with self._table.lock:
            before, self.entries = self.entries, entries
            if self._holders == 0:  # given back meanwhile
                _release(self._table, entries)
            elif self._readers:
                self._replaced += before
            else:
                _release(self._table, before)

    def _exchange(self, plan: Plan) -> None:
        with self._table.lock:
            self._table.lock.wait_for(lambda: self._readers == 0)
            before = self.entries[0]
            if self._holders > 0 and before is not None:
                self.entries = (self._table.exchange(before, plan),)


def _acquire(table: Table, plans: Sequence[Plan | None]) -> tuple[Entry | None, ...]:
    """Entries for all, or an error and none."""
    entries: list[Entry | None] = []
    try:
        for plan in plans:
            entries.append(None if plan is None else table.acquire(plan))
    except Exception:
        _release(table, entries)
        raise
    return tuple(entries)


def _release(table: Table, entries: Sequence[Entry | None]) -> None:
    for entry in entries:
        if entry is not None:
            table.release(entry)
