"""What a plan does to one request: the whole sequence, without cache or batch, row by row in plain torch.

Nothing here comes from the package; only fields of plans are read. Slow and obvious on purpose.
"""

from __future__ import annotations

from itertools import pairwise

import torch


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


def place_of(site, layer):
    """resid_pre of a layer is resid_post of the one below; below layer 0 there is layer -1."""
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)


def direction(term, layer, t):
    vector = term.vector.directions[layer].double()
    return vector[t] if vector.ndim == 2 else vector


def opened(gate, h, layer):
    if gate is None:
        return 1.0
    key = gate.key.directions[layer].double()
    if gate.kind == "cosine":
        return float(torch.dot(h, key) / (h.norm() * key.norm()) > gate.threshold)
    dot = torch.dot(h, key) + gate.bias
    return float(dot > 0) if gate.kind == "hard" else float(torch.sigmoid(dot))


def contribution(term, h, layer, t):
    """u(h) of one term, with its gate."""
    v = direction(term, layer, t)
    unit = v / v.norm()
    if term.operator == "add":
        scale = {"raw": 1.0, "unit": 1 / v.norm()}[term.scale]
        change = term.coefficient * scale * v
    elif term.operator == "ablate":
        change = -term.coefficient * torch.dot(h, unit) * unit
    elif term.operator == "clamp":
        change = (term.target - torch.dot(h, unit)) * unit
    elif term.operator == "add_relative":
        change = term.coefficient * h.norm() * unit
    else:
        raise NotImplementedError(term.operator)
    return opened(term.gate, h, layer) * change


def steered_row(h, place, t, prompt, plan):
    """The stream of position t after steering at a place."""
    g = gain(plan.schedule, t - len(prompt))
    active = [
        (term, layer)
        for term in plan.terms
        for layer in term.layers
        if place_of(term.site, layer) == place
        and selected(term.select, t, prompt)
        and not (term.operator != "clamp" and term.coefficient == 0)
    ]
    if not active or g == 0:
        return h
    h = h.double()
    y = h + g * sum(contribution(term, h, layer, t) for term, layer in active)
    n, grown = h.norm(), y.norm()
    if plan.finish == "preserve" and grown > 0:
        y = y * (n / grown)
    if plan.finish == "shrink" and grown > 0:
        y = y * min(1.0, float(n / grown))
    return y.float()


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


def acts(plan, model, prompt):
    """(position, place) -> whether the plan's condition lets it act there."""
    if plan.condition is None:
        return lambda t, place: True
    streams = {}
    run(model, prompt, lambda h, place: streams.setdefault(place, h))
    met = []
    for test in plan.condition.tests:
        value, limit = measured(test, streams, prompt), test.threshold
        met.append(value < limit if test.below else value > limit)
    held = all(met) if plan.condition.require == "all" else any(met)
    last = max(place_of(test.site, test.layer)[1] for test in plan.condition.tests)
    end = len(prompt) - 1
    return lambda t, place: held and (t > end or (t == end and place[1] > last))


def run(model, ids, at):
    """Llama's layers over one sequence; ``at(stream, place)`` gives what goes on. (logits [T, V], [streams])."""
    inner, length = model.model, len(ids)
    positions = torch.arange(length)[None]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        h = at(inner.embed_tokens(torch.tensor(ids)), ("resid_post", -1))
        rotary = inner.rotary_emb(h[None], positions)
        streams = [h]
        for index, layer in enumerate(inner.layers):
            normed = layer.input_layernorm(h[None])
            mixed = layer.self_attn(normed, position_embeddings=rotary, attention_mask=mask)[0]
            h = at(h + mixed[0], ("resid_mid", index))
            h = at(h + layer.mlp(layer.post_attention_layernorm(h)), ("resid_post", index))
            streams.append(h)
        return model.lm_head(inner.norm(h)), streams


def outcome(model, ids, prompt, plan):
    """(logits [T, V], [stream [T, D] before layer 0, after layer 0, ...]) of one request under a plan or None."""
    if plan is None:
        return run(model, ids, lambda h, place: h)
    allowed = acts(plan, model, prompt)

    def at(h, place):
        return torch.stack(
            [
                steered_row(row, place, t, prompt, plan) if allowed(t, place) else row
                for t, row in enumerate(h)
            ]
        )

    return run(model, ids, at)
