"""Handle: what ``attach`` returns. Choose plans with ``use``, see their effect in ``report``, ``detach``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from steerfast.errors import SteerfastError
from steerfast.models.forward_pass import ForwardPass
from steerfast.models.rebind import Rebindings
from steerfast.plan import Plan
from steerfast.sites import site_name
from steerfast.table import UNSTEERED, Entry, Table

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
        self, handle: Handle, entries: list[Entry | None], single: bool, lengths: Tensor | None
    ) -> None:
        self._handle = handle
        self.entries, self.single, self.prompt_lengths = entries, single, lengths

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

    def use(self, plans: Plans, *, prompt_lengths: Tensor | Sequence[int] | None = None) -> Use:
        """Steer by ``plans`` from now until the returned context ends.

            with handle.use(plan): ...                       # every row
            with handle.use([plan, None, other]): ...        # row by row; None: not steered

        In ``generate``, one plan per prompt (its beams and samples share it). In a bare forward all
        tokens count as prompt, unless ``prompt_lengths`` [B] says how many real tokens of each row
        are. Inside another ``use`` the inner one replaces it, and it returns on exit.

        Raises ValueError for a plan that does not fit the model, SteerfastError if the table is full
        or the handle is detached; warns if a vector names another model. Nothing changes then.
        """
        if not self._attached:
            raise SteerfastError("this handle is detached; attach the model again")
        single = plans is None or isinstance(plans, Plan)
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
            self._warn_of_other_model(plan)
        lengths = (
            None if prompt_lengths is None else torch.as_tensor(prompt_lengths, dtype=torch.int64)
        )
        entries: list[Entry | None] = []
        try:
            for plan in wanted:
                entries.append(None if plan is None else self.table.acquire(plan))
        except Exception:
            self._release(entries)
            raise
        use = Use(self, entries, single, lengths)
        self._stack.append(use)
        self._activate()
        return use

    def report(self) -> Report:
        """What the last forward steered, read back from the route that the kernels used."""
        shared = self._shared
        rows = shared.shape[0] * shared.shape[1]
        slots = Counter(shared.row_slot[:rows].tolist())
        lines = []
        served = {entry.plan.digest: entry for entry in shared.served if entry is not None}
        for digest, entry in served.items():
            for slot, phase in zip(entry.slots, entry.phases, strict=True):
                for site in sorted(phase.sites) if slots[slot] else ():
                    lines.append(
                        SteeredRows(site_name(site), slot, digest, phase.name, slots[slot])
                    )
        steered = sum(count for slot, count in slots.items() if slot != UNSTEERED)
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
            top = self._stack[-1]
            self._shared.assign(top.entries, top.single, top.prompt_lengths)
        else:
            self._shared.assign((None,))

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

    def _warn_of_other_model(self, plan: Plan) -> None:
        here = PurePath(self.model_name).name
        for term in plan.terms:
            there = PurePath(str(term.vector.provenance.get("model", ""))).name
            if here and there and here != there:
                warnings.warn(
                    f"vector {term.vector.name!r} was extracted from {there!r}, but this model is {here!r}; "
                    "a direction rarely means the same in another model",
                    stacklevel=3,
                )
