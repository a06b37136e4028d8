"""Plan: what one request gets. Immutable, validated on construction, with a content digest.

JSON lives in ``steerfast.io.plans``; what a plan means row by row is ``steerfast.lowering`` (per
phase and site) and ``steerfast.reference`` (arithmetic).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from steerfast.operators import Operator
from steerfast.term import Scale, Select, Site, Term, choice
from steerfast.vector import SteeringVector

Finish = Literal["none", "preserve", "shrink"]


@dataclass(frozen=True)
class Plan:
    """What one request gets: terms that add up, and a finish applied at every steered site.

    terms: one or more Terms; a plan has no order (they are sorted by digest).
    finish: ``none`` · ``preserve`` rescales the steered row to the norm it had · ``shrink`` does so only
        where it grew.

    Equal plans have equal digests, however they were written; names do not enter.
    Raises ValueError for no terms, mixed hidden sizes or an unknown finish.
    """

    terms: tuple[Term, ...]
    finish: Finish = "none"

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
        sizes = sorted({term.vector.hidden_size for term in terms})
        if len(sizes) > 1:
            raise ValueError(f"a plan mixes vectors of hidden sizes {sizes}; one model has one")
        object.__setattr__(self, "terms", tuple(sorted(terms, key=lambda term: term.digest)))
        content = hashlib.sha256(self.finish.encode())
        for term in self.terms:
            content.update(term.digest.encode())
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
    def layers(self) -> tuple[int, ...]:
        """Every layer named by a term, ascending."""
        return tuple(sorted({layer for term in self.terms for layer in term.steered_layers}))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)


def steer(
    vector: SteeringVector,
    coefficient: float = 1.0,
    *,
    layers: Iterable[int] | None = None,
    scale: Scale = "raw",
    site: Site = "resid_post",
    select: Select = "all",
    operator: Operator = "add",
    finish: Finish = "none",
    **fields: Any,
) -> Plan:
    """A plan of one term: ``steer(v, 2.0, layers=[15])``, ``steer(v, operator="clamp", target=0.0)``.

    Arguments as in Term and Plan; ``fields`` are the rest of Term's (target, angle, read, gate, ...).
    """
    chosen = None if layers is None else tuple(layers)
    return Plan(
        (Term(vector, coefficient, chosen, scale, site, select, operator, **fields),), finish
    )
