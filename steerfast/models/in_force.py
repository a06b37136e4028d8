"""Plans in force: what a ``use`` holds in the table, and forwards read."""

from __future__ import annotations

from collections.abc import Sequence

from steerfast.models.scope import Scope
from steerfast.plans.plan import Plan
from steerfast.routing.in_use import InUse
from steerfast.table.entry import Entry
from steerfast.table.lease import Lease
from steerfast.table.table import Table


class PlansInForce(Scope):
    """Plans, one for all rows (``single``) or one a row; lengths, prompts: of the rows of a bare forward."""

    def __init__(
        self,
        attachment: object,
        table: Table,
        plans: Sequence[Plan | None],
        single: bool,
        lengths: tuple[int, ...] | None,
        prompts: tuple[tuple[int, ...], ...] | None,
    ) -> None:
        super().__init__(attachment)
        self.single, self.prompt_lengths, self.prompts = single, lengths, prompts
        self.in_block = False  # of a ``with``, which has an end
        self.lease = Lease(table, plans)
        self._in_use = InUse(self.lease.entries, single, lengths, prompts)

    @property
    def in_use(self) -> InUse:
        """What forwards are steered by."""
        return self._of(self.lease.entries)

    def begin_reading(self) -> InUse | None:
        """The same, for a forward that begins; ``lease.end_reading`` when it has ended. None where this is over."""
        entries = self.lease.begin_reading()
        return None if entries is None else self._of(entries)

    def _of(self, entries: tuple[Entry | None, ...]) -> InUse:
        """Made once for the same entries, since routes are made anew for another."""
        if self._in_use.requests is not entries:
            self._in_use = InUse(entries, self.single, self.prompt_lengths, self.prompts)
        return self._in_use
