"""Use: plans in force in the thread or task that called ``handle.use``, and in what it starts from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.in_force import PlansInForce
from steerfast.plans.plan import Plan
from steerfast.table.entry import Entry

Plans = Plan | None | Sequence[Plan | None]
Checked = tuple[bool, list[Plan | None]]  # one for all rows; the plans


class Use(PlansInForce):
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
        single, wanted = check(plans)
        super().__init__(attachment, attachment.table, wanted, single, lengths, prompts)
        self._attachment, self._check, self._warn = attachment, check, warn
        scope.enter(self)
        try:
            warn(self.lease.entries)
            attachment.follow()
        except Exception:
            scope.leave(self)
            self.lease.give_back()
            raise
        attachment.begin_use(self)

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
        self.lease.change(wanted, in_place=self._attachment.here.now is None)
        self._attachment.note_sites(self.in_use.measured)
        self._attachment.follow()
        self._warn(self.lease.entries)

    def close(self) -> None:
        """End it; the plans in force before return. Harmless twice."""
        scope.leave(self)
        self._end()

    def _end(self) -> None:
        self._attachment.end_use(self)
        with suppress(
            SteerfastError
        ):  # of a use that was inherited and is over: the next forward says so
            self._attachment.follow()

    def __enter__(self) -> Use:
        if not self.is_open:
            raise SteerfastError(
                "this use() has ended; call handle.use(...) again for another block"
            )
        if self.in_block:
            raise SteerfastError(
                "this use() has a block already, at whose end it ends; call handle.use(...) for another"
            )
        self.in_block = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        was_open, held_here = self.is_open, scope.leave(self)
        self._end()
        if was_open and not held_here and error is None:
            raise SteerfastError(
                "this block of use() ends in another thread or task than it began in, as that of a generator whose steps run in "
                "several: what ran in them was not steered by it. Call handle.use(...) around each step, or run all steps in one "
                "thread or task"
            )

    def __del__(self) -> None:
        """The thread or task that called it is gone, and so is everybody who could end it."""
        if getattr(self, "is_open", False) and hasattr(self, "_attachment"):
            self._attachment.end_use(self)
