"""What ``use`` warns of: vectors of another model, and doses that leave nothing of the prompt."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from steerfast.models.fingerprint import same_weights
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_name
from steerfast.plans.vector import SteeringVector
from steerfast.table.dose import greatest
from steerfast.table.entry import Entry

_REMEMBERED = 1024
_PACKAGE = str(PurePath(__file__).parents[1])


class Cautions:
    """Of one attached model; said to whoever called into the package."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        self._same: dict[object, bool | None] = {}  # by recorded fingerprint
        self._doses: dict[str, tuple[float, int, int]] = {}  # by the plan's digest

    def of_model(self, plan: Plan) -> None:
        """Warn of vectors that are from another model: by its weights where both are known, else by its name."""
        for vector in plan.vectors:
            there = PurePath(str(vector.provenance.get("model", ""))).name
            here = PurePath(self._name).name
            same = self._same_weights(vector)
            if same is False:
                is_other = f"whose weights are not those of this model ({here or 'unnamed'})"
            elif same is None and here and there and here != there:
                is_other = f"but this model is {here!r}"
            else:
                continue
            warnings.warn(
                f"vector {vector.name!r} was extracted from {there or 'a model'!r}, {is_other}; a direction rarely means "
                "the same in another model",
                stacklevel=_outside(),
            )

    def _same_weights(self, vector: SteeringVector) -> bool | None:
        recorded = vector.provenance.get("fingerprint")
        if not isinstance(recorded, str):
            return None
        if recorded not in self._same:
            _forget(self._same)
            self._same[recorded] = same_weights(recorded, self._model)
        return self._same[recorded]

    def of_doses(self, entries: Iterable[Entry | None]) -> None:
        """Warn of plans that add more, over all of their layers, than the stream's typical norm."""
        for digest, entry in {one.plan.digest: one for one in entries if one is not None}.items():
            self._of_dose(digest, entry)

    def _of_dose(self, digest: str, entry: Entry) -> None:
        if digest not in self._doses:
            _forget(self._doses)
            worst = greatest(entry.plan, entry.phases)
            top = max(worst, key=lambda site: worst[site], default=-1)
            self._doses[digest] = (sum(worst.values()), len(worst), top)
        amount, sites, top = self._doses[digest]
        if amount <= 1.0 + 1e-6:
            return
        suggested = entry.plan.terms[0].vector.suggested_layer
        where = f"at {site_name(top)}" if sites == 1 else f"at {sites} sites together"
        start = "" if sites == 1 else f", or name fewer layers: layers=[{suggested}] is a start"
        warnings.warn(
            f"the plan adds {amount:.3g} times the stream's typical norm {where}; beyond about 0.3 text tends to fall "
            f"apart, and beyond 1 little is left of the prompt. Lower the coefficient{start}",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """How far up the first frame outside of the package is, for who calls this."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def _forget(known: dict[Any, Any]) -> None:
    """Room for one more, however long a process runs."""
    if len(known) >= _REMEMBERED:
        known.clear()
