"""Handle: what ``attach`` returns. Choose plans with ``use``, see their effect in ``report``, ``detach``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from steerfast.errors import SteerfastError, TableFullError
from steerfast.models.cautions import Cautions
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.generation import Loop
from steerfast.models.rebind import Rebindings
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_name
from steerfast.plans.vector import SteeringVector
from steerfast.routing.in_use import NOTHING, InUse, known_prompts
from steerfast.table.table import UNSTEERED, Entry, Table

Plans = Plan | None | Sequence[Plan | None]


@dataclass(frozen=True)
class SteeredRows:
    """One line of a report: ``rows`` tokens were steered at ``site`` by this phase of this plan."""

    site: str
    slot: int
    plan: str
    phase: str
    rows: int


@dataclass(frozen=True)
class Report:
    """What the last forward steered. ``rows``: N = batch x tokens, padding included; ``steered``: how
    many of them were in a slot; ``lines``: by site, slot and phase."""

    rows: int
    steered: int
    lines: tuple[SteeredRows, ...]

    def __str__(self) -> str:
        head = f"{self.steered} of {self.rows} rows steered"
        lines = [
            f"  {line.site:>16}  slot {line.slot:<3} plan {line.plan[:8]} {line.phase:<9} {line.rows} rows"
            for line in self.lines
        ]
        return "\n".join([head, *lines])


class Use:
    """Plans in force from the call of ``use`` until the ``with`` block (or ``close``) ends."""

    def __init__(
        self,
        handle: Handle,
        entries: list[Entry | None],
        single: bool,
        lengths: tuple[int, ...] | None,
        prompts: tuple[tuple[int, ...], ...] | None,
    ) -> None:
        self._handle = handle
        self.entries, self.single = entries, single
        self.prompt_lengths, self.prompts = lengths, prompts

    def change(self, plans: Plans) -> None:
        """Steer by other plans, as many as before, from the next forward on: the next token of a generation under
        way. Their terms, coefficients and schedules may be any; a condition must be the one that was there.

        Where the table has no room for both, the new plan takes the old one's place in it.
        Raises as ``use`` does; the plans in force stay then.
        """
        self._handle._change(self, plans)

    def close(self) -> None:
        """End it; the plans in force before return. Harmless twice."""
        self._handle._end(self)

    def __enter__(self) -> Use:
        if self not in self._handle._stack:
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


class Handle:
    """A patched model. ``handle.model`` is the very model given to ``attach``."""

    def __init__(
        self, model: Any, shared: ForwardPass, rebindings: Rebindings, model_name: str
    ) -> None:
        self.model = model
        self.model_name = model_name
        self._shared = shared
        self._cautions = Cautions(model, model_name)
        self._rebindings = rebindings
        self._stack: list[Use] = []
        self._attached = True

    @property
    def table(self) -> Table:
        """The plans in the model's fixed tensors."""
        return self._shared.table

    @property
    def backend(self) -> str:
        """The backend that runs the ops: cpu, reference, ..."""
        return self._shared.backend

    def use(
        self,
        plans: Plans,
        *,
        prompt_lengths: Tensor | Sequence[int] | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> Use:
        """Steer by ``plans`` from now until the returned context ends.

            with handle.use(plan): ...                       # every row
            with handle.use([plan, None, other]): ...        # row by row; None: not steered

        In ``generate``, one plan per prompt (its beams and samples share it). In a bare forward all
        tokens count as prompt, unless ``prompt_lengths`` [B] says how many real tokens of each row
        are, or ``prompts`` gives their token ids. Inside another ``use`` the inner one replaces it, and it
        returns on exit.

        Raises ValueError for a plan that does not fit the model, SteerfastError if the table is full
        or the handle is detached. Nothing changes then. Warns of a vector from another model, and of a plan
        that adds more than the stream's typical norm over its layers.
        """
        single, wanted = self._checked(plans)
        lengths, ids = known_prompts(prompt_lengths, prompts)
        use = Use(self, self._acquire(wanted), single, lengths, ids)
        try:
            self._assign(use)
        except Exception:
            self._release(use.entries)
            self._activate()
            raise
        self._stack.append(use)
        return use

    def _checked(self, plans: Plans) -> tuple[bool, list[Plan | None]]:
        """(one for all rows, [plan or None]), all of which fit the model."""
        if not self._attached:
            raise SteerfastError("this handle is detached; attach the model again")
        if isinstance(plans, SteeringVector):
            raise TypeError(
                f"use() takes plans, got the vector {plans.name!r}; make a plan of it: steer(vector, 0.2, layers=[10], "
                'scale="stream")'
            )
        single = plans is None or isinstance(plans, Plan)
        if not single and not isinstance(plans, Iterable):
            raise TypeError(
                f"use() takes a plan, None, or a list of them with one a row, got {type(plans).__name__}"
            )
        wanted: list[Plan | None] = [plans] if single else list(plans)  # type: ignore[list-item,arg-type]
        if not wanted:
            raise ValueError(
                "use() was given an empty list; give one plan or None per row, or None for all"
            )
        for plan in wanted:
            if plan is None:
                continue
            if not isinstance(plan, Plan):
                raise TypeError(f"use() takes plans (or None), got {type(plan).__name__}")
            self.table.check(plan)
            self._cautions.of_model(plan)
        return single, wanted

    def _change(self, use: Use, plans: Plans) -> None:
        if use not in self._stack:
            raise SteerfastError("this use() has ended; call handle.use(...) again")
        single, wanted = self._checked(plans)
        if single != use.single or len(wanted) != len(use.entries):
            raise ValueError(
                f"change() was given {'one plan for all rows' if single else f'{len(wanted)} plans'}, but this use() has "
                f"{'one for all rows' if use.single else f'{len(use.entries)}'}"
            )
        before = use.entries
        try:
            use.entries = self._acquire(wanted)
        except TableFullError:
            if len(wanted) > 1 or before[0] is None or wanted[0] is None:
                raise
            use.entries = [self.table.exchange(before[0], wanted[0])]
        else:
            self._release(before)
        self._activate()

    def _acquire(self, plans: list[Plan | None]) -> list[Entry | None]:
        """Entries for all, or an error and none."""
        entries: list[Entry | None] = []
        try:
            for plan in plans:
                entries.append(None if plan is None else self.table.acquire(plan))
            for entry in entries:
                if entry is not None:
                    self._cautions.of_dose(entry)
        except Exception:  # a warning too, where warnings are errors
            self._release(entries)
            raise
        return entries

    def generating(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Loop:
        """For a decoding loop other than ``generate``: prompts [B, T] and their 2-D mask; see ``Loop``."""
        if not self._attached:
            raise SteerfastError("this handle is detached; attach the model again")
        return Loop(self._shared, input_ids, attention_mask)

    def report(self) -> Report:
        """What the last forward steered, read back from the route that the kernels used."""
        shared, routing = self._shared, self._shared.routing
        rows = shared.shape[0] * shared.shape[1]
        row_slot, row_gain = routing.rows.slot[:rows], routing.rows.gain[:rows]
        slots = Counter(torch.where(row_gain != 0, row_slot, UNSTEERED).tolist())
        lines = []
        served = {entry.plan.digest: entry for entry in routing.served() if entry is not None}
        for digest, entry in served.items():
            for slot, phase in zip(entry.slots, entry.phases, strict=True):
                for site in sorted(phase.sites) if slots[slot] else ():
                    lines.append(
                        SteeredRows(site_name(site), slot, digest, phase.name, slots[slot])
                    )
        steered = sum(number for slot, number in slots.items() if slot != UNSTEERED)
        return Report(rows, steered, tuple(lines))

    def detach(self) -> None:
        """Put the model's own methods back, the very same objects. Harmless twice.

        Raises SteerfastError, with nothing changed, if another library has patched over ours since.
        """
        if not self._attached:
            return
        self._rebindings.restore()
        self._attached = False
        for use in list(self._stack):
            self._end(use)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.detach()

    def _activate(self) -> None:
        if self._stack:
            self._assign(self._stack[-1])
        else:
            self._shared.routing.assign(NOTHING)

    def _assign(self, use: Use) -> None:
        self._shared.routing.assign(
            InUse(tuple(use.entries), use.single, use.prompt_lengths, use.prompts)
        )

    def _end(self, use: Use) -> None:
        if use not in self._stack:
            return
        self._stack.remove(use)
        self._release(use.entries)
        self._activate()

    def _release(self, entries: list[Entry | None]) -> None:
        for entry in entries:
            if entry is not None:
                self.table.release(entry)
