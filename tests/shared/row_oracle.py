"""What a row computes, all operators and gates, in plain torch and float64. h is [T, D]: the rows of one sequence.

Nothing here comes from the package; only fields of terms are read. Directions are not rounded as a table's are.
"""

from __future__ import annotations

import math

import torch


class Watch:
    """How near each position came to a threshold, as part of what is compared with it; and a shake of every stream, by
    so much of its greatest element, which shows what roundings grow into."""

    def __init__(self, rows, shake=0.0, seed=0):
        self.margin = torch.full((rows,), math.inf, dtype=torch.float64)
        self.acting = torch.ones(rows, dtype=torch.bool)
        self.shake, self.random = shake, torch.Generator().manual_seed(seed)

    def only(self, rows):
        """While a term acts on these rows."""
        self.acting = rows
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.acting = torch.ones_like(self.acting)

    def near(self, margin):
        margin = torch.where(self.acting, margin.reshape(-1).abs(), math.inf)
        self.margin = torch.minimum(self.margin, margin)

    def shaken(self, h):
        if not self.shake:
            return h
        noise = torch.randn(h.shape, generator=self.random, dtype=torch.float64)
        return h + (self.shake * h.abs().amax(-1, keepdim=True) * noise).to(h.dtype)


def place_of(site, layer):
    """resid_pre of a layer is resid_post of the one below; below layer 0 there is layer -1."""
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)


def idle(term):
    """Whether a term does nothing whatever it reads."""
    if term.operator in ("clamp", "floor", "ceiling", "feature_clamp", "rotate_to"):
        return False
    return (term.angle if term.operator == "rotate_by" else term.coefficient) == 0


def dot(h, v):
    return (h * v).sum(-1, keepdim=True)


def length(v):
    return v.norm(dim=-1, keepdim=True)


def by_row(term, layer, rows):
    """The direction of each row, [T, D]: rows behind a positional vector's last get any."""
    v = term.vector.directions[layer].double()
    if v.ndim == 1:
        return v.expand(rows, -1)
    return v[torch.arange(rows).clamp(max=len(v) - 1)]


def scale(term, layer, plan):
    """What v/|v| is multiplied by; None where v stays as it is."""
    if term.scale == "raw":
        return None
    if term.scale == "unit":
        return 1.0
    if term.scale == "stream":
        return term.vector.stream_norms[layer - (term.site == "resid_pre")]
    named = {}
    for other in plan.terms:
        for at in other.layers if other.operator == "add" else ():
            if place_of(other.site, at) == place_of(term.site, layer):
                v = other.vector.directions[at]
                for row in v[None] if v.ndim == 1 else v[: other.select.count]:
                    named[tuple(row.tolist())] = float(row.double().norm())
    return sum(named.values()) / len(named)


def contribution(term, h, layer, plan, watch):
    """u(h) of one term that is no ablation, without its gate."""
    name, c, t = term.operator, term.coefficient, term.target
    v, n = by_row(term, layer, len(h)), length(h)
    unit = v / length(v)
    p = dot(h, unit)
    if name == "add":
        factor = scale(term, layer, plan)
        return c * (v if factor is None else factor * unit)
    if name == "add_relative":
        return c * n * unit
    if name == "signed":
        watch.near(p / n)
        return c * torch.sign(p) * unit
    if name == "clamp":
        return (t - p) * unit
    if name == "floor":
        return (t - p).clamp(min=0) * unit
    if name == "ceiling":
        return -(p - t).clamp(min=0) * unit
    if name == "reflect":
        return -2 * c * p * unit
    if name in ("map", "feature_clamp"):
        a = term.read.directions[layer].double()
        z = dot(h, a) + term.bias
        if name == "map":
            return c * z * v
        watch.near((z - term.threshold) / (n * a.norm()))
        return (t - torch.where(z > term.threshold, z, 0.0)) * v
    if name == "slerp":
        return slerp(h, n, p, unit, c, watch)
    other = term.second.directions[layer].double()
    rest = other - dot(other, unit) * unit
    second = rest / length(rest)
    q, cos, sin = dot(h, second), math.cos(term.angle), math.sin(term.angle)
    if name == "rotate_by":
        return ((cos - 1) * p - sin * q) * unit + (sin * p + (cos - 1) * q) * second
    assert name == "rotate_to"
    along = torch.hypot(p, q)
    return (along * cos - p) * unit + (along * sin - q) * second


def slerp(h, n, p, unit, t, watch):
    """The textbook's: |h| (sin((1-t) w) h/|h| + sin(t w) v) / sin w, less h."""
    w = torch.acos((p / n).clamp(-1, 1))
    sine = torch.sin(w)
    watch.near(sine - 1e-4)
    turned = n * (torch.sin((1 - t) * w) * h / n + torch.sin(t * w) * unit) / sine
    return torch.where((sine >= 1e-4) & (n > 0), turned - h, 0.0)


def opened(gate, h, layer, watch):
    """[T, 1], what a gate multiplies by."""
    if gate is None:
        return torch.ones(len(h), 1, dtype=torch.float64)
    key = gate.key.directions[layer].double()
    along = dot(h, key)
    if gate.kind == "sigmoid":
        return torch.sigmoid(along + gate.bias)
    size = length(h) * key.norm()
    over = along / size - gate.threshold if gate.kind == "cosine" else (along + gate.bias) / size
    watch.near(over)
    return (over > 0).double()


def ablated(h, members):
    """-sum of the projections on what the vectors that act on a row span. members: [(direction [T, D], acts [T])]."""
    change = torch.zeros_like(h)
    acts = torch.stack([one for _, one in members])
    for pattern in acts.T.unique(dim=0):
        for t in (pattern == acts.T).all(-1).nonzero()[:, 0].tolist() if pattern.any() else ():
            units = [v[t] / v[t].norm() for (v, _), on in zip(members, pattern, strict=True) if on]
            _, sizes, axes = torch.linalg.svd(torch.stack(units), full_matrices=False)
            axes = axes[sizes > 1e-6]
            change[t] = -(h[t] @ axes.T) @ axes
    return change
