"""Term and Gate: one operator at one site of one or more layers. Immutable, validated, with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from steerfast.plans.fields import choice, number, wholes
from steerfast.plans.operators import OPERATORS, Operator
from steerfast.plans.selectors import First, Positions, Select, check_select, span
from steerfast.plans.sites import Site
from steerfast.plans.vector import SteeringVector

Scale = Literal["raw", "unit", "equal", "stream"]
GateName = Literal["hard", "cosine", "sigmoid"]

PARALLEL = 1e-4  # sine below which two directions span no plane


@dataclass(frozen=True)
class Gate:
    """When a term acts, token by token, from the row h itself.

        hard      1 where <h, key> + bias > 0, else 0
        cosine    1 where <h, key> / (|h| |key|) > threshold, else 0; 0 where h = 0
        sigmoid   1 / (1 + exp(-(<h, key> + bias)))

    key: a SteeringVector with a direction for each steered layer, not zero.
    Raises ValueError for an unknown kind, a number that is not finite, or one of the other kind.
    """

    kind: GateName
    key: SteeringVector
    bias: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        choice("gate", self.kind, GateName)
        if not isinstance(self.key, SteeringVector):
            raise TypeError(f"a gate's key is a SteeringVector, got {type(self.key).__name__}")
        object.__setattr__(self, "bias", number("a gate's bias", self.bias))
        object.__setattr__(self, "threshold", number("a gate's threshold", self.threshold))
        unused = "bias" if self.kind == "cosine" else "threshold"
        if getattr(self, unused) != 0.0:
            raise ValueError(f"a {self.kind} gate takes no {unused}")


@dataclass(frozen=True)
class Term:
    """One operator at one site of one or more layers. Its formula: ``steerfast.plans.operators.OPERATORS``.

    vector: the direction; at layer l its own direction of layer l is used. A positional vector ([T, D] a
        layer) goes with ``select=First(n)``, n <= T: position t gets row t.
    coefficient: c, finite, either sign: of ``add``, ``add_relative``, ``signed`` and ``map``; the strength of
        ``ablate`` and ``reflect``; the fraction of the angle of ``slerp``. At 0 the term does nothing.
    layers: layers to steer, one or several; None means every layer that the vector has.
    scale: of ``add``: ``raw`` v as it is (the paper's) · ``unit`` v/|v| · ``equal`` v/|v| times the mean norm of
        the distinct vectors that the plan's ``add`` terms name at that site · ``stream`` v/|v| times the
        model's median stream norm there, so that a coefficient means the same at every layer.
    site: ``resid_post`` (layer output, default), ``resid_mid`` (after attention) or ``resid_pre``
        (layer input; of layer l >= 1 the same place as ``resid_post`` of l - 1).
    select: which tokens, by position: ``all``, ``prompt``, ``generated``, ``after_prompt``,
        ``last_prompt_token``, Positions, AfterSequence or First (``steerfast.plans.selectors``). Padding never.
    operator: ``add`` or another of ``Operator``.
    target: t of ``clamp``, ``floor``, ``ceiling`` (a projection on v/|v|) and of ``feature_clamp``.
    angle: of ``rotate_to`` and ``rotate_by``, radians, from v/|v| towards ``second`` made orthogonal to it.
    second: the other vector of the plane of rotation. read: the vector a that ``map`` and
        ``feature_clamp`` read; they write v. Both enter as they are, not normalised.
    bias, threshold: of ``map`` (bias) and ``feature_clamp``.
    gate: a Gate, or None: the term always acts.

    Raises TypeError or ValueError for an unknown choice, a field that the operator does not take or
    lacks, a layer a vector lacks, a number that is not finite, a zero direction where it is normalised,
    vectors that span no plane, or ``stream`` without stream norms.
    """

    vector: SteeringVector
    coefficient: float = 1.0
    layers: Iterable[int] | int | None = None
    scale: Scale = "raw"
    site: Site = "resid_post"
    select: Select = "all"
    operator: Operator = "add"
    target: float | None = None
    angle: float | None = None
    read: SteeringVector | None = None
    second: SteeringVector | None = None
    bias: float = 0.0
    threshold: float = 0.0
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vector, SteeringVector):
            raise TypeError(f"a term steers by a SteeringVector, got {type(self.vector).__name__}")
        choice("scale", self.scale, Scale)
        choice("site", self.site, Site)
        check_select(self.select)
        choice("operator", self.operator, Operator)
        for name in ("coefficient", "target", "angle", "bias", "threshold"):
            value = getattr(self, name)
            if value is not None or name not in ("target", "angle"):
                what = f"{name} of {self.vector.name!r}"
                object.__setattr__(self, name, number(what, value))
        if self.gate is not None and not isinstance(self.gate, Gate):
            raise TypeError(f"a term's gate is a Gate, got {type(self.gate).__name__}")
        self._check_fields()
        self._check_positions()
        wanted = self.vector.layers if self.layers is None else self.layers
        layers = tuple(sorted(set(wholes(f"each of the layers of {self.vector.name!r}", wanted))))
        if not layers:
            raise ValueError(f"term of {self.vector.name!r} names no layer")
        object.__setattr__(self, "layers", layers)
        if self.vector.positions is not None:
            self.by_position()  # each checks itself
            return
        for layer in layers:
            self._check_layer(layer)

    def _check_fields(self) -> None:
        takes = OPERATORS[self.operator]
        known = takes.required + takes.optional
        for field in fields(self)[1:]:
            name = field.name
            if name in ("layers", "site", "select", "operator", "gate"):
                continue
            given = getattr(self, name) != field.default
            if given and name not in known:
                raise ValueError(
                    f"operator {self.operator!r} takes no {name}; it takes {', '.join(known)}"
                )
            if name in takes.required and not given:
                raise ValueError(f"operator {self.operator!r} needs {name}: {takes.formula}")
        for name in ("read", "second"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, SteeringVector):
                raise TypeError(f"{name} is a SteeringVector, got {type(value).__name__}")
        for other in self._others():
            if other.hidden_size != self.vector.hidden_size:
                raise ValueError(
                    f"term of {self.vector.name!r} mixes hidden sizes {self.vector.hidden_size} and "
                    f"{other.hidden_size} ({other.name!r}); one model has one"
                )

    def _check_positions(self) -> None:
        """A positional vector and ``First`` belong together; no other vector may be positional."""
        for other in self._others():
            if other.positions is not None:
                raise ValueError(
                    f"vector {other.name!r} is positional; what a term reads has one direction a layer"
                )
        count = self.vector.positions
        if count is None:
            return
        if not isinstance(self.select, First) or self.select.count > count:
            raise ValueError(
                f"vector {self.vector.name!r} is positional ({count} positions), so its term selects "
                f"First(n) with n up to {count}, not {self.select!r}"
            )

    def by_position(self) -> tuple[Term, ...]:
        """Itself; of a positional vector one ordinary term for each of its positions."""
        if self.vector.positions is None:
            return (self,)
        assert isinstance(self.select, First)
        return tuple(
            replace(self, vector=self.vector.position(t), select=Positions(t, t + 1))
            for t in range(self.select.count)
        )

    @property
    def vectors(self) -> tuple[SteeringVector, ...]:
        """The vector, and those that it reads: ``read``, ``second``, the gate's key."""
        return (self.vector, *self._others())

    def _others(self) -> list[SteeringVector]:
        key = None if self.gate is None else self.gate.key
        return [vector for vector in (self.read, self.second, key) if vector is not None]

    def _check_layer(self, layer: int) -> None:
        direction = self.vector.direction(layer)
        for other in self._others():
            other.direction(layer)
        if self.gate is not None and not self.gate.key.direction(layer).any():
            raise ValueError(f"the gate's key {self.gate.key.name!r} is zero at layer {layer}")
        if self.scale == "stream":
            self.stream_norm(layer)
        if not (OPERATORS[self.operator].unit or self.scale != "raw"):
            return
        if not direction.any():
            use = f"operator {self.operator!r}" if self.scale == "raw" else f"scale {self.scale!r}"
            raise ValueError(
                f"vector {self.vector.name!r} is zero at layer {layer}, so {use} cannot "
                "normalise it; leave that layer out"
            )
        if self.second is not None and self.plane(layer) is None:
            raise ValueError(
                f"vectors {self.vector.name!r} and {self.second.name!r} are parallel at layer {layer} "
                "and span no plane to rotate in"
            )

    def unit(self, layer: int) -> Tensor:
        """v/|v| of a layer, [D] float64."""
        direction = self.vector.direction(layer).double()
        normalised: Tensor = direction / torch.linalg.vector_norm(direction)
        return normalised

    def plane(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The orthonormal (b1, b2) of a rotation, float64; None where the vectors span no plane."""
        assert self.second is not None
        first, other = self.unit(layer), self.second.direction(layer).double()
        length = torch.linalg.vector_norm(other)
        rest = other - (other @ first) * first
        rest = rest - (rest @ first) * first  # once more, against cancellation
        size = torch.linalg.vector_norm(rest)
        return None if size <= PARALLEL * length else (first, rest / size)

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
                "steerfast.with_stream_norms(vector, model, tokenizer, texts)"
            )
        return self.vector.stream_norms[source]

    @property
    def steered_layers(self) -> tuple[int, ...]:
        """The layers, resolved: the given ones or all of the vector's."""
        assert isinstance(self.layers, tuple)  # set by __post_init__
        return self.layers

    @property
    def idle(self) -> bool:
        """Whether the term does nothing, whatever h is: its coefficient, or angle of rotation, is 0."""
        dial = OPERATORS[self.operator].dial
        return dial is not None and getattr(self, dial) == 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the term does: operator, values, numbers, site, selector, gate; no names."""
        content = hashlib.sha256()
        head: list[str] = [self.operator, self.scale, self.site, repr(span(self.select))]
        for value in (self.coefficient, self.target, self.angle, self.bias, self.threshold):
            head.append("" if value is None else value.hex())
        if self.gate is not None:
            head += [self.gate.kind, self.gate.bias.hex(), self.gate.threshold.hex()]
        content.update("|".join(head).encode())
        for layer in self.steered_layers:
            norm = self.stream_norm(layer).hex() if self.scale == "stream" else ""
            content.update(f"|{layer}:{norm}:".encode())
            for vector in self.vectors:
                content.update(vector.direction(layer).numpy().tobytes())
        return content.hexdigest()
