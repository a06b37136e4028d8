"""Term and Plan: what one request gets. Immutable, validated on construction, with a content digest.

JSON lives in ``steerfast.io.plans``; what a plan means row by row is ``steerfast.lowering`` (deltas
per phase and site) and ``steerfast.reference`` (arithmetic).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from steerfast.vector import SteeringVector

Operator = Literal["add"]
Scale = Literal["raw", "unit", "equal", "stream"]
Select = Literal["all", "prompt", "generated"]
Site = Literal["resid_pre", "resid_mid", "resid_post"]
Finish = Literal["none", "preserve", "shrink"]


def _choice(what: str, value: object, allowed: object) -> None:
    known = get_args(allowed)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Term:
    """One vector, added at one site of one or more layers.

        u(h) = coefficient * scale(v)

    vector: the direction; at layer l its own direction of layer l is used.
    coefficient: finite float, either sign.
    layers: layers to steer; None means every layer that the vector has.
    scale: ``raw`` v as it is (the paper's) · ``unit`` v/|v| · ``equal`` v/|v| times the mean norm of
        the distinct vectors that the plan adds at that site · ``stream`` v/|v| times the model's
        median stream norm there, so that a coefficient means the same at every layer.
    site: ``resid_post`` (layer output, default), ``resid_mid`` (after attention) or ``resid_pre``
        (layer input; of layer l >= 1 the same place as ``resid_post`` of l - 1).
    select: which tokens, by absolute position t and prompt length P: ``all``, ``prompt`` (t < P) or
        ``generated`` (t >= P; so the first sampled token is unaffected). Padding never.

    Raises ValueError for an unknown choice, a layer the vector lacks, a coefficient that is not
    finite, a zero direction with a scale that divides by its norm, or ``stream`` without stream norms.
    """

    vector: SteeringVector
    coefficient: float = 1.0
    layers: tuple[int, ...] | None = None
    scale: Scale = "raw"
    site: Site = "resid_post"
    select: Select = "all"
    operator: Operator = "add"

    def __post_init__(self) -> None:
        if not isinstance(self.vector, SteeringVector):
            raise TypeError(f"a term steers by a SteeringVector, got {type(self.vector).__name__}")
        _choice("scale", self.scale, Scale)
        _choice("site", self.site, Site)
        _choice("selector", self.select, Select)
        _choice("operator", self.operator, Operator)
        if isinstance(self.coefficient, bool) or not isinstance(self.coefficient, (int, float)):
            raise TypeError(f"a coefficient is a number, got {self.coefficient!r}")
        coefficient = float(self.coefficient)
        if not math.isfinite(coefficient):
            raise ValueError(
                f"coefficient of {self.vector.name!r} is {coefficient}; it must be finite"
            )
        object.__setattr__(self, "coefficient", coefficient)
        wanted = self.vector.layers if self.layers is None else self.layers
        if isinstance(wanted, int) or not all(type(layer) is int for layer in wanted):
            raise TypeError(f"layers is a tuple of integers, got {self.layers!r}")
        layers = tuple(sorted(set(wanted)))
        if not layers:
            raise ValueError(f"term of {self.vector.name!r} names no layer")
        object.__setattr__(self, "layers", layers)
        for layer in layers:
            self._check_layer(layer)

    def _check_layer(self, layer: int) -> None:
        direction = self.vector.at(layer)
        if self.scale == "raw":
            return
        if not direction.any():
            raise ValueError(
                f"vector {self.vector.name!r} is zero at layer {layer}, so scale {self.scale!r} cannot "
                "normalise it; leave that layer out or use scale 'raw'"
            )
        if self.scale == "stream":
            self.stream_norm(layer)

    def stream_norm(self, layer: int) -> float:
        """The typical stream norm at this term's site of a layer, from those of the layer outputs:
        ``resid_pre`` of layer l is the output of l - 1, ``resid_mid`` takes that of the layer itself.

        ValueError if the vector does not carry it; layer 0's ``resid_pre`` is never measured.
        """
        source = layer - 1 if self.site == "resid_pre" else layer
        if source < 0:
            raise ValueError(
                "scale 'stream' is not measured at resid_pre of layer 0; use another scale"
            )
        if source not in self.vector.stream_norms:
            raise ValueError(
                f"scale 'stream' needs the stream norm of layer {source}, which vector "
                f"{self.vector.name!r} does not carry; add it with "
                "steerfast.extract.with_stream_norms(vector, model, tokenizer, texts)"
            )
        return self.vector.stream_norms[source]

    @property
    def steered_layers(self) -> tuple[int, ...]:
        """The layers, resolved: the given ones or all of the vector's."""
        assert self.layers is not None  # set by __post_init__
        return self.layers

    @property
    def digest(self) -> str:
        """SHA-256 of what the term does: values, coefficient, scale, site, selector; not its name."""
        content = hashlib.sha256()
        head = (self.operator, self.scale, self.site, self.select, (self.coefficient + 0.0).hex())
        content.update("|".join(head).encode())
        for layer in self.steered_layers:
            norm = self.stream_norm(layer).hex() if self.scale == "stream" else ""
            content.update(f"|{layer}:{norm}:".encode())
            content.update(self.vector.at(layer).numpy().tobytes())
        return content.hexdigest()


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
        _choice("finish", self.finish, Finish)
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
    finish: Finish = "none",
) -> Plan:
    """A plan of one term: ``steer(v, 2.0, layers=[15])``. Arguments as in Term and Plan."""
    chosen = None if layers is None else tuple(layers)
    return Plan((Term(vector, coefficient, chosen, scale, site, select),), finish)
