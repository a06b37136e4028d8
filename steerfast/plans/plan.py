"""Plan: what one request gets. Immutable, validated on construction, with a content digest.

JSON lives in ``steerfast.io.plans``; what a plan means row by row is ``steerfast.table.lowering`` (per
phase and site) and ``steerfast.ops.reference`` (arithmetic).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from steerfast.plans.condition import Condition
from steerfast.plans.fields import choice
from steerfast.plans.operators import Operator
from steerfast.plans.schedule import Schedule
from steerfast.plans.selectors import Select
from steerfast.plans.sites import Site, site_index
from steerfast.plans.term import Scale, Term
from steerfast.plans.vector import SteeringVector

Finish = Literal["none", "preserve", "shrink"]


@dataclass(frozen=True)
class Plan:
    """What one request gets: terms that add up, and a finish applied at every steered site.

    terms: one or more Terms; a plan has no order (they are sorted by digest).
    finish: ``none`` · ``preserve`` rescales the steered row to the norm it had · ``shrink`` does so only
        where it grew.
    schedule: a gain for every token, by its distance from the prompt's end; None is 1 everywhere.
    condition: whether the request is steered at all, decided from its prompt; None: it is.

    Equal plans have equal digests, however they were written; names do not enter.
    Raises ValueError for no terms, mixed hidden sizes or an unknown finish.
    """

    terms: tuple[Term, ...]
    finish: Finish = "none"
    schedule: Schedule | None = None
    condition: Condition | None = None

    def __post_init__(self) -> None:
        terms = (self.terms,) if isinstance(self.terms, Term) else tuple(self.terms)
        for term in terms:
            if not isinstance(term, Term):
                raise TypeError(f"a plan is made of Terms, got {type(term).__name__}")
        if not terms:
            raise ValueError(
                "a plan needs at least one term; for no steering use None instead of a plan"
            )
        choice("finish", self.finish, Finish)
        for name, kind in (("schedule", Schedule), ("condition", Condition)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"a plan's {name} is a {kind.__name__} or None, got {type(value).__name__}"
                )
        object.__setattr__(self, "terms", terms)
        sizes = sorted({vector.hidden_size for vector in self.vectors})
        if len(sizes) > 1:
            raise ValueError(f"a plan mixes vectors of hidden sizes {sizes}; one model has one")
        object.__setattr__(self, "terms", tuple(sorted(terms, key=lambda term: term.digest)))
        content = hashlib.sha256(self.finish.encode())
        for term in self.terms:
            content.update(term.digest.encode())
        if self.schedule is not None:
            content.update(repr(self.schedule.points).encode())
        if self.condition is not None:
            content.update(self.condition.digest.encode())
        object.__setattr__(self, "_digest", content.hexdigest())

    @property
    def digest(self) -> str:
        """SHA-256 of what the plan does."""
        digest: str = self._digest  # type: ignore[attr-defined]
        return digest

    @property
    def hidden_size(self) -> int:
        """D of the model that this plan fits."""
        return self.terms[0].vector.hidden_size

    @property
    def vectors(self) -> tuple[SteeringVector, ...]:
        """Every vector of its terms, their gates and its condition; one that stands in several places, several times."""
        tests = () if self.condition is None else self.condition.tests
        of_terms = (vector for term in self.terms for vector in term.vectors)
        return (*of_terms, *(test.key for test in tests))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer named by a term or measured by the condition, ascending."""
        named = {layer for term in self.terms for layer in term.steered_layers}
        tests = () if self.condition is None else self.condition.tests
        return tuple(sorted(named | {test.layer for test in tests}))

    @property
    def sites(self) -> frozenset[int]:
        """Every site steered by a term or measured by the condition, by its number (``plans.sites``)."""
        steered = {site_index(t.site, layer) for t in self.terms for layer in t.steered_layers}
        tests = () if self.condition is None else self.condition.tests
        return frozenset(steered | {test.measured_at for test in tests})

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)


def steer(
    vector: SteeringVector,
    coefficient: float = 1.0,
    *,
    layers: Iterable[int] | int | None = None,
    scale: Scale = "raw",
    site: Site = "resid_post",
    select: Select = "all",
    operator: Operator = "add",
    finish: Finish = "none",
    schedule: Schedule | None = None,
    condition: Condition | None = None,
    **fields: Any,
) -> Plan:
    """A plan of one term: ``steer(v, 2.0, layers=[15])``, ``steer(v, operator="clamp", target=0.0)``.

    Arguments as in Term and Plan; ``fields`` are the rest of Term's (target, angle, read, gate, ...).
    """
    term = Term(vector, coefficient, layers, scale, site, select, operator, **fields)
    return Plan((term,), finish, schedule, condition)
