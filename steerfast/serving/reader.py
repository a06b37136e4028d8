"""Reader: what a request says, to a plan that is known to run, or the reason why not.

Everything that can be wrong with a plan is found here, in the front end, where it costs one client an answer;
in a worker it would cost all clients the server.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from steerfast.errors import PlanTooLargeError
from steerfast.io.plans import plan_from_json
from steerfast.io.strict import as_object, parse
from steerfast.io.vectors import vector_from_json
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector
from steerfast.serving.catalogue import Catalogue
from steerfast.serving.dose import dose
from steerfast.serving.remembered import Remembered
from steerfast.serving.settings import Settings
from steerfast.serving.wire import Parts, Prepared, prepare
from steerfast.table.lowering import Lowered
from steerfast.table.packing import Cost, Packed, pack

logger = logging.getLogger("steerfast")
_REMEMBERED = 32 * 2**20  # bytes of plans as text, and as many of them as numbers
_VECTORS = ("vector", "read", "second", "key")


class PlanReader:
    """Reads plans for a model of ``num_layers`` layers of width ``hidden_size``; safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        num_layers: int,
        hidden_size: int,
        *,
        catalogue: Catalogue | None = None,
    ) -> None:
        self.settings, self.num_layers, self.hidden_size = settings, num_layers, hidden_size
        self.catalogue = catalogue or Catalogue(settings.vectors, settings.max_vectors)
        self._plans: Remembered[tuple[str, int], _Found] = Remembered(_REMEMBERED)
        self._parts: Parts = Remembered(_REMEMBERED)

    def read(self, value: object) -> Prepared | None:
        """The plan of a request's field: JSON text or a dict in the plan schema, a plan's registered name, or a Plan.
        None for a plan that never acts. ValueError, with the reason, for anything else."""
        if value is None:
            return None
        if isinstance(value, Plan):
            return self._checked(value)
        text = self._text(value)
        self.catalogue.refresh()
        key = (text, self.catalogue.version)
        found = self._plans.get(key)
        if found is None:
            try:
                found = _Found(self._checked(self._plan(text)))
            except ValueError as error:  # whoever asks again is refused at once
                found = _Found(None, str(error))
            self._plans.put(key, found, found.size + len(text))
        if found.refusal is not None:
            raise ValueError(found.refusal)
        return found.prepared

    def check(self, plan: Plan) -> None:
        """ValueError for a plan that could not run here."""
        self._checked(plan)

    def _text(self, value: object) -> str:
        if isinstance(value, Mapping):
            try:
                value = json.dumps(dict(value))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"a plan given as a dict holds what JSON cannot: {error}"
                ) from error
        if not isinstance(value, str):
            raise ValueError(
                f"a plan is JSON text, or the name of a registered plan; got {type(value).__name__}"
            )
        size = len(value.encode("utf-8", "surrogatepass"))
        if size > self.settings.max_plan_bytes:
            raise ValueError(
                f"the plan has {size} bytes; this server takes up to {self.settings.max_plan_bytes} "
                "(STEERFAST_MAX_PLAN_BYTES): register its vectors and name them"
            )
        return value

    def _plan(self, text: str) -> Plan:
        if not text.lstrip().startswith("{"):
            return self.catalogue.plan(text.strip())
        with _reading("plan"):
            data = parse(text, "a plan")
            if isinstance(data, dict) and isinstance(data.get("terms"), list):
                self._check_count(len(data["terms"]))  # before any of them is made
            if not self.settings.inline:
                _refuse_inline(data)
            return plan_from_json(text, self.catalogue.vector)

    def _check_count(self, terms: int) -> None:
        most = self.settings.max_terms
        if terms > most:
            raise ValueError(f"terms: the plan has {terms}; this server takes up to {most}")

    def _checked(self, plan: Plan) -> Prepared | None:
        self._check_count(len(plan.terms))
        names = ", ".join(sorted({term.vector.name for term in plan.terms}))
        if plan.hidden_size != self.hidden_size:
            raise ValueError(
                f"vector: {names} has hidden size {plan.hidden_size}, but this model has {self.hidden_size}; extract "
                "it from this model"
            )
        if plan.layers[-1] >= self.num_layers:
            raise ValueError(
                f"layers: the plan names layer {plan.layers[-1]}; this model has layers 0..{self.num_layers - 1}"
            )
        with _reading("plan"):
            return prepare(plan, partial(self._packed, plan), self._parts)

    def _packed(self, plan: Plan, part: Lowered) -> Packed:
        """What a part of a plan comes to. ValueError for one that there is no room for, or that adds too much."""
        settings = self.settings
        with _reading("plan"):
            room = Cost(settings.slots, settings.rows, settings.programs)
            found = pack(plan, part.phases, room)
        amount, site = dose(plan, part)
        if not math.isfinite(amount) or amount > settings.dose_refuse:
            raise ValueError(
                f"coefficient: the plan adds {amount:.3g} times the stream's typical norm at {site}; this server "
                f"takes up to {settings.dose_refuse:g} (STEERFAST_DOSE_REFUSE)"
            )
        if amount > settings.dose_warn:
            logger.warning(
                "plan %s adds %.3g times the stream's typical norm at %s",
                plan.digest[:8],
                amount,
                site,
            )
        return found


class _Found(NamedTuple):
    """What reading a text came to: a plan (None: one that never acts), or why it is refused."""

    prepared: Prepared | None
    refusal: str | None = None

    @property
    def size(self) -> int:
        """Bytes that keeping it takes, about."""
        said = 0 if self.refusal is None else len(self.refusal)
        return 256 + said + (0 if self.prepared is None else self.prepared.size)


def read_vector(text: str | bytes, name: str) -> SteeringVector:
    """A vector from JSON (its inline form), under a name; ValueError for anything else."""
    with _reading("vector"):
        return vector_from_json({**as_object(parse(text, "a vector"), "a vector"), "name": name})


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever a client sends must end as its own error, a ValueError."""
    try:
        yield
    except PlanTooLargeError as error:
        raise ValueError(f"terms: {error} (STEERFAST_{error.what.upper()})") from error
    except ValueError:
        raise
    except Exception as error:
        logger.warning("a %s could not be read: %r", what, error)
        raise ValueError(f"the {what} cannot be read: {error!r}") from error


def _refuse_inline(data: Any) -> None:
    """ValueError for a vector given by value."""
    pending = [data]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            for name in _VECTORS:
                if isinstance(one.get(name), dict):
                    raise ValueError(
                        f"{name}: vectors inside a request are off on this server (STEERFAST_INLINE); register it and "
                        "give its name"
                    )
            pending += one.values()
