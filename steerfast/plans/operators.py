"""The operators of a term: what each computes, and which fields of a term it takes.

p = <h, v̂>, n = |h|, v̂ = v/|v|; c, t, angle, bias, threshold: fields of the term
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Operator = Literal[
    "add",
    "add_relative",
    "signed",
    "ablate",
    "clamp",
    "floor",
    "ceiling",
    "reflect",
    "map",
    "feature_clamp",
    "rotate_to",
    "rotate_by",
    "slerp",
]


@dataclass(frozen=True)
class Takes:
    """formula: the contribution u(h). required, optional: fields beside vector, layers, site, select, gate.
    unit: the vector enters as v/|v|, so it must not be zero. dial: the field whose
    value 0 makes the operator do nothing, whatever h is; None: there is none."""

    formula: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    unit: bool = True
    dial: str | None = None


OPERATORS: dict[Operator, Takes] = {
    "add": Takes("c * scale(v)", (), ("coefficient", "scale"), unit=False, dial="coefficient"),
    "add_relative": Takes("c * n * v̂", (), ("coefficient",), dial="coefficient"),
    "signed": Takes("c * sign(p) * v̂, sign(0) = 0", (), ("coefficient",), dial="coefficient"),
    "ablate": Takes("-c * p * v̂", (), ("coefficient",), dial="coefficient"),
    "clamp": Takes("(t - p) * v̂", ("target",)),
    "floor": Takes("max(t - p, 0) * v̂", ("target",)),
    "ceiling": Takes("-max(p - t, 0) * v̂", ("target",)),
    "reflect": Takes("-2 c * p * v̂", (), ("coefficient",), dial="coefficient"),
    "map": Takes(
        "c * (<h, read> + bias) * v",
        ("read",),
        ("coefficient", "bias"),
        unit=False,
        dial="coefficient",
    ),
    "feature_clamp": Takes(
        "(t - f) * v, z = <h, read> + bias, f = z if z > threshold else 0",
        ("read", "target"),
        ("bias", "threshold"),
        unit=False,
    ),
    "rotate_to": Takes(
        "(q cos(angle) - p1) b1 + (q sin(angle) - p2) b2, q = hypot(p1, p2)", ("second", "angle")
    ),
    "rotate_by": Takes(
        "((cos - 1) p1 - sin p2) b1 + (sin p1 + (cos - 1) p2) b2, of angle",
        ("second", "angle"),
        dial="angle",
    ),
    "slerp": Takes(
        "h turned towards v̂ by c of the angle between them, |h| kept; nothing within 1e-4 rad of ±v̂",
        (),
        ("coefficient",),
        dial="coefficient",
    ),
}
assert tuple(OPERATORS) == get_args(Operator)
