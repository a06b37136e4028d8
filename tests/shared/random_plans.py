"""Random requests for the oracle: prompts, and plans with every operator, selector, schedule, condition and finish."""

from __future__ import annotations

from dataclasses import replace

import plan_oracle
import torch
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from steerfast import (
    AfterSequence,
    Condition,
    First,
    Gate,
    Plan,
    Positions,
    Schedule,
    SteeringVector,
    Term,
    Test,
)

D, LAYERS, VOCABULARY = 32, 3, 64
MARK = (60, 61)  # stands in every prompt
SITES = ["resid_pre", "resid_mid", "resid_post"]


def llama(seed=3):
    return tiny_llama(hidden=D, layers=LAYERS, vocabulary=VOCABULARY, spread=0.3, seed=seed)


PLAIN = llama()  # never patched: the oracle's


def vector(seed, positions=None):
    rng = torch.Generator().manual_seed(seed)
    shape = (D,) if positions is None else (positions, D)
    directions = {at: torch.randn(shape, generator=rng) for at in range(LAYERS)}
    return SteeringVector(f"v{seed}", directions, {at: 2.0 + at for at in range(LAYERS)})


def any_vector(rng):
    """One of many, or of a few, so that plans name the same one twice."""
    return vector(rng.randrange(10_000) if rng.random() < 0.8 else rng.randrange(3))


def prompt(rng):
    before = [rng.randrange(1, 60) for _ in range(rng.randrange(5))]
    if rng.random() < 0.3:  # what a plan looks for begins, or stands, earlier too
        before += rng.choice([MARK, MARK[:1], [*MARK, 7]])
    return [*before, *MARK, *(rng.randrange(1, 64) for _ in range(rng.randrange(6)))]


def selector(rng):
    kind = rng.choice(["name", "name", "range", "end range", "mark", "first"])
    if kind == "name":
        names = ["all", "prompt", "generated", "after_prompt", "last_prompt_token"]
        return rng.choice(names)
    if kind == "range":
        start = rng.randrange(10)
        return Positions(start, rng.choice([None, start + 1, start + 4, "prompt_end"]))
    if kind == "end range":
        return Positions(rng.randrange(-6, 0), rng.choice([None, "prompt_end", 5, 12]))
    if kind == "mark":
        return AfterSequence(rng.choice([MARK, MARK[:1], MARK[1:]]))
    return First(rng.randrange(1, 13))


def gate(rng, jumps):
    kind = rng.choice(["hard", "cosine", "sigmoid"] if jumps else ["sigmoid"])
    number = {"threshold": rng.uniform(-0.2, 0.2)} if kind == "cosine" else {}
    if kind != "cosine":
        number = {"bias": rng.choice([0.0, rng.uniform(-3, 3)])}
    return Gate(kind, any_vector(rng), **number)


SMOOTH = ["add", "add_relative", "ablate", "clamp", "floor", "ceiling", "reflect", "map"]
SMOOTH += ["rotate_to", "rotate_by", "slerp"]
JUMPS = ["signed", "feature_clamp"]


def numbers(rng, operator):
    """The fields of an operator, beside vector and place."""
    if operator in ("clamp", "floor", "ceiling"):
        return {"target": rng.uniform(-8, 8)}
    if operator in ("rotate_to", "rotate_by"):
        angles = [rng.uniform(-3.2, 3.2), 1.0, 0.0]
        second = vector(rng.randrange(10_000, 20_000))  # never the vector itself
        return {"second": second, "angle": rng.choice(angles)}
    if operator == "feature_clamp":
        given = {"target": rng.uniform(-1, 1), "threshold": rng.choice([0.0, rng.uniform(-2, 2)])}
        return {**given, "read": any_vector(rng), "bias": rng.uniform(-1, 1)}
    if operator == "map":
        given = {"coefficient": rng.choice([-0.1, 0.0, 0.05]), "bias": rng.choice([0.0, 1.5])}
        return {**given, "read": any_vector(rng)}
    if operator == "slerp":
        return {"coefficient": rng.choice([-0.5, 0.0, 0.2, 0.7, 1.0])}
    if operator in ("ablate", "reflect"):
        return {"coefficient": rng.choice([1.0, 1.0, 0.5, -0.7, 0.0])}
    return {"coefficient": rng.choice([-2.0, -0.7, 0.0, 0.5, 1.5])}


def term(rng, jumps=False, select=None, operator=None):
    """jumps: also operators and gates where a rounding may decide between two values."""
    select = selector(rng) if select is None else select
    positions = select.count if isinstance(select, First) and rng.random() < 0.5 else None
    site = rng.choice(SITES)
    if operator is None:
        operator = rng.choice(["add", "add", *SMOOTH, *(JUMPS if jumps else ())])
    given = numbers(rng, operator)
    layers = tuple(rng.sample(range(LAYERS), rng.randrange(1, 3)))
    number = rng.randrange(10_000) if rng.random() < 0.8 else rng.randrange(3)
    v = vector(number, positions)
    if operator == "add":
        given["scale"] = rng.choice(["raw", "unit", "equal", "stream"])
        if given["scale"] == "stream" and site == "resid_pre" and 0 in layers:
            site = "resid_mid"  # of the embeddings no norm is known
    if rng.random() < 0.25:
        given["gate"] = gate(rng, jumps)
    return Term(v, layers=layers, site=site, select=select, operator=operator, **given)


def kin(rng, one):
    """A term that differs by its vector alone: what a table merges with it."""
    if one.vector.positions is not None:
        return one
    return replace(one, vector=any_vector(rng))


def schedule(rng):
    kind = rng.choice([None, None, None, "points", "window", "ramp", "decay", "table"])
    start, length = rng.randrange(-6, 5), rng.randrange(1, 6)
    if kind == "points":
        offsets = sorted(rng.sample(range(-8, 9), length))
        return Schedule(tuple((at, rng.choice([-1.0, 0.0, 0.5, 2.0])) for at in offsets))
    if kind == "window":
        return Schedule.window(start, start + length, gain=1.5)
    if kind == "ramp":
        return Schedule.ramp(start, start + length, low=rng.choice([0.0, 2.0]))
    if kind == "decay":
        return Schedule.decay(length, start=start)
    return None if kind is None else Schedule.table([0.0, 1.0, -1.0, 0.5, 2.0][:length], start)


def condition(rng, tokens, averaging, model=PLAIN):
    """One to three tests, each met or not by a clear margin, half and half."""
    streams = {}
    plan_oracle.run(model, tokens, lambda h, place: streams.setdefault(place, h))
    tests = []
    for _ in range(rng.randrange(1, 4)):
        given = {
            "kind": rng.choice(["cosine", "projection", "probe"]),
            "key": vector(rng.randrange(10_000)),
            "layer": rng.randrange(LAYERS),
            "site": rng.choice(SITES),
            "over": rng.choice(["last", "mean"] if averaging else ["last"]),
            "below": rng.random() < 0.5,
        }
        value = plan_oracle.measured(Test(**given), streams, tokens)
        limit = value + rng.choice([-0.05, 0.05])
        number = {"bias": -limit} if given["kind"] == "probe" else {"threshold": limit}
        tests.append(Test(**given, **number))
    return Condition(tuple(tests), require=rng.choice(["all", "any"]))


def plan(rng, tokens, averaging=True, jumps=False, most=3):
    """A plan for the request with these prompt tokens, or None."""
    if rng.random() < 0.1:
        return None
    terms = [term(rng, jumps)]
    while len(terms) < most and rng.random() < 0.6:
        terms.append(kin(rng, terms[-1]) if rng.random() < 0.3 else term(rng, jumps))
    return Plan(
        tuple(terms),
        finish=rng.choice(["none", "preserve", "shrink"]),
        schedule=schedule(rng),
        condition=condition(rng, tokens, averaging) if rng.random() < 0.35 else None,
    )


def requests(rows, averaging=True):
    """Strategy: [(prompt, plan or None)] of as many rows."""

    def drawn(rng):
        prompts = [prompt(rng) for _ in range(rows)]
        return [(tokens, plan(rng, tokens, averaging)) for tokens in prompts]

    return st.randoms(use_true_random=True).map(drawn)
