"""What a plan does to one request: the whole sequence, without cache or batch; what a row computes is ``row_oracle``'s.

Nothing here comes from the package; only fields of plans are read. Slow and obvious on purpose.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from row_oracle import Watch, ablated, by_row, contribution, idle, length, opened, place_of

# -- where and when -----------------------------------------------------------------------------------------


def begins(prompt, sequence):
    """Where the last occurrence of a sequence in a prompt ends."""
    ends = [
        start + len(sequence) - 1
        for start in range(len(prompt) - len(sequence) + 1)
        if tuple(prompt[start : start + len(sequence)]) == tuple(sequence)
    ]
    return ends[-1]


def selected(select, t, prompt):
    """Whether a selector takes position t of a request with this prompt."""
    length = len(prompt)
    if isinstance(select, str):
        return {
            "all": True,
            "prompt": t < length,
            "generated": t >= length,
            "after_prompt": t >= length - 1,
            "last_prompt_token": t == length - 1,
        }[select]
    kind = type(select).__name__
    if kind == "AfterSequence":
        return t >= begins(prompt, select.tokens)
    if kind == "First":
        return t < select.count

    def place(bound):
        if bound == "prompt_end":
            return length
        return length + bound if bound < 0 else bound

    return place(select.start) <= t and (select.stop is None or t < place(select.stop))


def gain(schedule, offset):
    """The schedule's value at t - P = offset: straight lines between points, ends held."""
    if schedule is None:
        return 1.0
    points = schedule.points
    if offset <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= offset <= x1:
            return y0 + (y1 - y0) * (offset - x0) / (x1 - x0)
    return points[-1][1]


def steered(stream, place, prompt, plan, watch):
    """The rows of a sequence after steering at a place; those that are not steered keep their bits."""
    h, rows = stream.double(), len(stream)
    gains = torch.tensor([gain(plan.schedule, t - len(prompt)) for t in range(rows)])[:, None]
    acting, change, ablations = torch.zeros(rows, dtype=torch.bool), torch.zeros_like(h), {}
    for term in plan.terms:
        for layer in term.layers:
            if place_of(term.site, layer) != place or idle(term):
                continue
            here = torch.tensor([selected(term.select, t, prompt) for t in range(rows)])
            if not here.any():
                continue
            acting |= here
            if term.operator == "ablate":
                gate = term.gate
                name = gate and (gate.kind, gate.bias, gate.threshold)
                key = gate and tuple(gate.key.directions[layer].tolist())
                group = ablations.setdefault((term.coefficient, name, key), (gate, layer, []))
                group[2].append((by_row(term, layer, rows), here))
                continue
            with watch.only(here):
                u = contribution(term, h, layer, plan, watch)
                u = opened(term.gate, h, layer, watch) * u
            change = change + torch.where(here[:, None], u, 0.0)
    for (strength, *_), (gate, layer, members) in ablations.items():
        with watch.only(torch.stack([one for _, one in members]).any(0)):
            change += strength * opened(gate, h, layer, watch) * ablated(h, members)
    y = h + gains * change
    n, grown = length(h), length(y)
    factor = torch.where(grown > 0, n / torch.where(grown > 0, grown, 1.0), 1.0)
    if plan.finish == "preserve":
        y = y * factor
    if plan.finish == "shrink":
        y = y * factor.clamp(max=1.0)
    return torch.where(acting[:, None] & (gains != 0), y, h).to(stream.dtype)


# -- conditions -----------------------------------------------------------------------------------------------


def measured(test, streams, prompt):
    """The value of a test, from the streams of an unsteered prompt by place."""
    h = streams[place_of(test.site, test.layer)][: len(prompt)].double()
    key = test.key.directions[test.layer].double()
    dots = h @ key
    if test.kind == "cosine":
        values = dots / (h.norm(dim=-1) * key.norm())
    elif test.kind == "projection":
        values = dots / key.norm()
    else:
        values = dots + test.bias
    return float(values[-1] if test.over == "last" else values.mean())


def acts(plan, model, prompt, places=None):
    """(positions [T], place) -> [T], whether the plan's condition lets it act there."""
    if plan.condition is None:
        return lambda t, place: torch.ones_like(t, dtype=torch.bool)
    streams = {}
    run(model, prompt, lambda h, place: streams.setdefault(place, h), places)
    met = []
    for test in plan.condition.tests:
        value, limit = measured(test, streams, prompt), test.threshold
        met.append(value < limit if test.below else value > limit)
    held = all(met) if plan.condition.require == "all" else any(met)
    last = max(place_of(test.site, test.layer)[1] for test in plan.condition.tests)
    end = len(prompt) - 1
    return lambda t, place: (
        torch.full_like(t, held, dtype=torch.bool) & ((t > end) | ((t == end) & (place[1] > last)))
    )


# -- the model ------------------------------------------------------------------------------------------------


def run(model, ids, at, places=None):
    """Llama's layers over one sequence; ``at(stream, place)`` gives what goes on. (logits [T, V], [streams])."""
    inner, rows = model.model, len(ids)
    positions = torch.arange(rows) if places is None else torch.tensor(places)[:rows]
    mask = torch.full((rows, rows), torch.finfo(model.dtype).min, dtype=model.dtype).triu(1)
    with torch.no_grad():
        h = at(inner.embed_tokens(torch.tensor(ids)), ("resid_post", -1))
        rotary = inner.rotary_emb(h[None], positions[None])
        streams = [h]
        for index, layer in enumerate(inner.layers):
            normed = layer.input_layernorm(h[None])
            attend = {"position_embeddings": rotary, "attention_mask": mask[None, None]}
            mixed = layer.self_attn(normed, **attend)[0]
            h = at(h + mixed[0], ("resid_mid", index))
            h = at(h + layer.mlp(layer.post_attention_layernorm(h)), ("resid_post", index))
            streams.append(h)
        return model.lm_head(inner.norm(h)), streams


class Outcome(NamedTuple):
    """logits: [T, V]. streams: [T, D] before layer 0, after layer 0, ... margin: [T], see ``Watch``."""

    logits: torch.Tensor
    streams: list[torch.Tensor]
    margin: torch.Tensor


def watched(model, ids, prompt, plan, *, places=None, changes=(), shake=0.0):
    """One request under a plan or None. changes: (from position, other plan), ascending, as ``change`` makes them."""
    watch, t = Watch(len(ids), shake), torch.arange(len(ids))
    spans = [(0, plan), *changes]
    allowed = [None if one is None else acts(one, model, prompt, places) for _, one in spans]

    def at(h, place):
        h = after = watch.shaken(h)
        for (start, one), may in zip(spans, allowed, strict=True):
            row = h
            if one is not None:
                row = torch.where(may(t, place)[:, None], steered(h, place, prompt, one, watch), h)
            after = torch.where((t >= start)[:, None], row, after)
        return after

    return Outcome(*run(model, ids, at, places), watch.margin)


def outcome(model, ids, prompt, plan):
    """(logits [T, V], [stream [T, D] before layer 0, after layer 0, ...]) of one request under a plan or None."""
    return watched(model, ids, prompt, plan)[:2]
