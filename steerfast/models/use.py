"""Use: plans in force in the thread or task that called ``handle.use``, and in what it starts from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.scope import Scope
from steerfast.plans.plan import Plan
from steerfast.routing.in_use import InUse
from steerfast.table.lease import Lease
from steerfast.table.table import Entry

Plans = Plan | None | Sequence[Plan | None]
Checked = tuple[bool, list[Plan | None]]  # one for all rows; the plans


class Use(Scope):
    """Plans in force from the call of ``use`` until the ``with`` block (or ``close``) ends.

    Other threads and tasks are not steered by it, but for those that are started from here while it is in force. A generation
    that began under it in one of them goes on under it to its end.
    """

    def __init__(
        self,
        attachment: Attachment,
        check: Callable[[Plans], Checked],
        warn: Callable[[Sequence[Entry | None]], None],
        plans: Plans,
        lengths: tuple[int, ...] | None,
        prompts: tuple[tuple[int, ...], ...] | None,
    ) -> None:
        super().__init__(attachment)
        self.single, wanted = check(plans)
        self._check, self._warn = check, warn
        self.prompt_lengths, self.prompts = lengths, prompts
        self.lease = Lease(attachment.table, wanted)
        self._in_use = InUse(self.lease.entries, self.single, lengths, prompts)
        scope.enter(self)
        try:
            warn(self.lease.entries)
            attachment.follow()
        except Exception:
            scope.leave(self)
            self.lease.give_back()
            raise
        attachment.begin_use(self)

    @property
    def in_use(self) -> InUse:
        """What forwards are steered by."""
        return self._of(self.lease.entries)

    def begin_reading(self) -> InUse:
        """The same, for a forward that begins; ``lease.end_reading`` when it has ended."""
        return self._of(self.lease.begin_reading())

    def _of(self, entries: tuple[Entry | None, ...]) -> InUse:
        """Made once for the same entries, since routes are made anew for another."""
        if self._in_use.requests is not entries:
            self._in_use = InUse(entries, self.single, self.prompt_lengths, self.prompts)
        return self._in_use

    def change(self, plans: Plans) -> None:
        """Steer by other plans, as many as before, from the next forward on: the next token of a generation under
        way. Their terms, coefficients and schedules may be any; a condition must be the one that was there. Any thread may
        call it.

        Where the table has no room for both, the new plan takes the old one's place in it.
        Raises as ``use`` does; the plans in force stay then.
        """
        if not self.is_open:
            raise SteerfastError("this use() has ended; call handle.use(...) again")
        single, wanted = self._check(plans)
        before = len(self.lease.entries)
        if single != self.single or len(wanted) != before:
            raise ValueError(
                f"change() was given {'one plan for all rows' if single else f'{len(wanted)} plans'}, but this use() has "
                f"{'one for all rows' if self.single else f'{before}'}"
            )
        self.lease.change(wanted, in_place=self.attachment.now is None)
        self.attachment.note_sites(self.in_use.measured)
        self.attachment.follow()
        self._warn(self.lease.entries)

    def close(self) -> None:
        """End it; the plans in force before return. Harmless twice."""
        scope.leave(self)
        if self.attachment.end_use(self):
            self.lease.give_back()
        with suppress(
            SteerfastError
        ):  # of a use that was inherited and is over: the next forward says so
            self.attachment.follow()

    def __enter__(self) -> Use:
        if not self.is_open:
            raise SteerfastError(
                "this use() has ended; call handle.use(...) again for another block"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
