"""Handle: what ``attach`` returns. Choose plans with ``use``, see their effect in ``report``, ``detach``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerfast.decoders.survey import Survey
from steerfast.errors import SteerfastError
from steerfast.models.attachment import Attachment
from steerfast.models.cautions import Cautions
from steerfast.models.loop import Loop
from steerfast.models.use import Checked, Plans, Use
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_name
from steerfast.plans.vector import SteeringVector
from steerfast.routing.in_use import known_prompts
from steerfast.table.entry import UNSTEERED
from steerfast.table.table import Table


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
    many of them were in a slot; ``lines``: by site, slot and phase; ``layers``: how they are patched, in words, where
    some are not fused."""

    rows: int
    steered: int
    lines: tuple[SteeredRows, ...]
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = "\n".join([f"{self.steered} of {self.rows} rows steered", *self.layers])
        lines = [
            f"  {line.site:>16}  slot {line.slot:<3} plan {line.plan[:8]} {line.phase:<9} {line.rows} rows"
            for line in self.lines
        ]
        return "\n".join([head, *lines])


class Handle:
    """A patched model. ``handle.model`` is the very model given to ``attach``."""

    def __init__(self, model: Any, shared: Attachment) -> None:
        self.model = model
        self._shared = shared
        self._cautions = Cautions(model, shared.model_name)

    @property
    def table(self) -> Table:
        """The plans in the model's fixed tensors."""
        return self._shared.table

    @property
    def backend(self) -> str:
        """The backend that runs the ops: cpu, reference, ..."""
        return self._shared.backend

    @property
    def survey(self) -> Survey:
        """How each layer is patched, and how that is known."""
        return self._shared.survey

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
        returns on exit. It holds in this thread (or asyncio task) and in what is started from it; see ``Use``.

        Raises ValueError for a plan that does not fit the model, SteerfastError if the table is full
        or the handle is detached. Nothing changes then. Warns of a vector from another model, and of a plan
        that adds more than the stream's typical norm over its layers.
        """
        lengths, ids = known_prompts(prompt_lengths, prompts)
        return Use(self._shared, self._checked, self._cautions.of_doses, plans, lengths, ids)

    def _checked(self, plans: Plans) -> Checked:
        """(one for all rows, [plan or None]), all of which fit the model."""
        if not self._shared.is_attached:
            raise SteerfastError("this handle is detached; attach the model again")
        if isinstance(plans, SteeringVector):
            raise TypeError(
                f"use() takes plans, got the vector {plans.name!r}; make a plan of it: steer(vector, 0.2, layers=[10], "
                'scale="stream")'
            )
        if isinstance(plans, Mapping):
            raise TypeError(
                "use() takes a list with one plan (or None) a row, in the order of the rows, got "
                f"{type(plans).__name__}; give [plans[name] for name in ...]"
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
                raise TypeError(
                    f"use() takes plans (or None), got {type(plan).__name__}; a plan is made by steer(vector, coefficient, "
                    "layers=[...])"
                )
            self.table.check(plan)
            self._cautions.of_model(plan)
        return single, wanted

    def generating(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Loop:
        """For a decoding loop other than ``generate``: prompts [B, T] and their 2-D mask; see ``Loop``."""
        if not self._shared.is_attached:
            raise SteerfastError("this handle is detached; attach the model again")
        return Loop(self._shared, input_ids, attention_mask)

    def report(self) -> Report:
        """What the last forward of this thread steered (where it ran none, the last of any), read back from the route
        that the kernels used."""
        now = self._shared.state.last or self._shared.last
        survey = self._shared.survey
        layers = () if survey.fused == len(survey.layers) else tuple(survey.summary())
        if now is None:
            return Report(0, 0, (), layers)
        rows = now.shape[0] * now.shape[1]
        row_slot, row_gain = now.rows.slot[:rows], now.rows.gain[:rows]
        slots = Counter(torch.where(row_gain != 0, row_slot, UNSTEERED).tolist())
        lines = []
        served = {entry.key: entry for entry in now.served() if entry is not None}
        for entry in served.values():
            for slot, phase in zip(entry.slots, entry.phases, strict=True):
                for site in sorted(phase.sites) if slots[slot] else ():
                    lines.append(
                        SteeredRows(
                            site_name(site), slot, entry.plan.digest, phase.name, slots[slot]
                        )
                    )
        steered = sum(number for slot, number in slots.items() if slot != UNSTEERED)
        return Report(rows, steered, tuple(lines), layers)

    def detach(self) -> None:
        """Put the model's own methods back, the very same objects. Harmless twice.

        Raises SteerfastError, with nothing changed, if another library has patched over ours since, while the model runs, and
        while a ``use`` of another thread or task, or a manager of continuous batching, goes on.
        """
        if not self._shared.is_attached:
            return
        self._shared.check_quiet()
        self._shared.rebindings.restore()
        self._shared.is_attached = False
        for use in list(self._shared.uses):
            self._shared.end_use(use)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.detach()
