"""What a row computes, written out once more: plain loops in float64, from the table of operators in words.

Nothing here comes from the package. A term is a public operator with its vectors and numbers; there are
no reads, programs or records. Slow and obvious on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Row = list[float]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def length(a: Sequence[float]) -> float:
    return math.sqrt(dot(a, a))


def times(c: float, v: Sequence[float]) -> Row:
    return [c * x for x in v]


def total(*rows: Sequence[float]) -> Row:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


# The operators: u(h) for a row h. Vectors v, b1, b2 and the basis q are unit vectors.


def add_relative(h: Row, v: Row, c: float) -> Row:
    return times(c * length(h), v)


def signed(h: Row, v: Row, c: float) -> Row:
    p = dot(h, v)
    return times(c * (1 if p > 0 else -1 if p < 0 else 0), v)


def add(h: Row, v: Row, c: float) -> Row:
    return times(c, v)


def ablate(h: Row, basis: Sequence[Row], a: float = 1.0) -> Row:
    return total(*(times(-a * dot(h, q), q) for q in basis))


def clamp(h: Row, v: Row, t: float) -> Row:
    return times(t - dot(h, v), v)


def floor(h: Row, v: Row, t: float) -> Row:
    return times(max(t - dot(h, v), 0.0), v)


def ceiling(h: Row, v: Row, t: float) -> Row:
    return times(-max(dot(h, v) - t, 0.0), v)


def reflect(h: Row, v: Row, a: float = 1.0) -> Row:
    return times(-2.0 * a * dot(h, v), v)


def map_(h: Row, a: Row, b: Row, c: float, bias: float) -> Row:
    return times(c * (dot(h, a) + bias), b)


def feature_clamp(h: Row, a: Row, b: Row, t: float, bias: float, threshold: float) -> Row:
    z = dot(h, a) + bias
    f = z if z > threshold else 0.0
    return times(t - f, b)


def rotate_to(h: Row, b1: Row, b2: Row, angle: float) -> Row:
    p1, p2 = dot(h, b1), dot(h, b2)
    q = math.hypot(p1, p2)
    return total(times(q * math.cos(angle) - p1, b1), times(q * math.sin(angle) - p2, b2))


def rotate_by(h: Row, b1: Row, b2: Row, angle: float) -> Row:
    p1, p2 = dot(h, b1), dot(h, b2)
    cos, sin = math.cos(angle), math.sin(angle)
    return total(
        times((cos - 1) * p1 - sin * p2, b1),
        times(sin * p1 + (cos - 1) * p2, b2),
    )


def slerp(h: Row, v: Row, t: float) -> Row:
    n = length(h)
    if n == 0:
        return [0.0] * len(h)
    cosine = min(1.0, max(-1.0, dot(h, v) / n))
    w = math.acos(cosine)
    if math.sin(w) < 1e-4:
        return [0.0] * len(h)
    turned = (1 - t) * w
    s0 = math.sin(turned) / math.sin(w)
    return total(times(s0 - 1, h), times(n * (math.cos(turned) - math.cos(w) * s0), v))


# The gates: a number for a row h.


def always(h: Row) -> float:
    return 1.0


def hard(key: Row, bias: float) -> Callable[[Row], float]:
    return lambda h: 1.0 if dot(h, key) + bias > 0 else 0.0


def cosine(key: Row, t: float) -> Callable[[Row], float]:
    def gate(h: Row) -> float:
        n = length(h)
        return 1.0 if n > 0 and dot(h, key) / (n * length(key)) > t else 0.0

    return gate


def sigmoid(key: Row, bias: float) -> Callable[[Row], float]:
    def gate(h: Row) -> float:
        z = dot(h, key) + bias
        return 1.0 / (1.0 + math.exp(-z)) if z > -700 else 0.0

    return gate


@dataclass
class Term:
    """An operator with its arguments, and its gate."""

    operator: Callable[..., Row]
    arguments: tuple[object, ...]
    gate: Callable[[Row], float] = always

    def of(self, h: Row) -> Row:
        return times(self.gate(h), self.operator(h, *self.arguments))


@dataclass
class Plan:
    """What one slot does at a site."""

    terms: list[Term] = field(default_factory=list)
    finish: str = "none"

    def steer(self, h: Row, gain: float) -> Row:
        """The new row, not rounded."""
        if not self.terms or gain == 0:
            return h
        y = total(h, times(gain, total(*(term.of(h) for term in self.terms))))
        if self.finish == "none" or length(y) == 0:
            return y
        factor = length(h) / length(y)
        return times(factor if self.finish == "preserve" else min(1.0, factor), y)


def rms_norm(stream: Row, weight: Row, eps: float, rounded: Callable[[float], float]) -> Row:
    """weight * rounded(stream / rms): rounded is float for one rounding at the end, T's for transformers'."""
    mean = dot(stream, stream) / len(stream)
    return [w * rounded(s / math.sqrt(mean + eps)) for s, w in zip(stream, weight, strict=True)]
