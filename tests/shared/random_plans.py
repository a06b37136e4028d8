"""Random requests for the oracle: prompts, and plans with every selector, schedule, condition and finish."""

from __future__ import annotations

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
    return SteeringVector(
        f"v{seed}", {at: torch.randn(shape, generator=rng) for at in range(LAYERS)}
    )


def prompt(rng):
    before = [rng.randrange(1, 60) for _ in range(rng.randrange(5))]
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


def term(rng):
    select = selector(rng)
    positions = select.count if isinstance(select, First) and rng.random() < 0.5 else None
    given = {
        "vector": vector(rng.randrange(10_000), positions),
        "layers": tuple(rng.sample(range(LAYERS), rng.randrange(1, 3))),
        "site": rng.choice(SITES),
        "select": select,
    }
    if rng.random() < 0.25:
        given["gate"] = Gate("sigmoid", vector(rng.randrange(10_000)))
    operator = rng.choice(["add", "add", "ablate", "clamp", "add_relative"])
    if operator == "clamp":
        return Term(operator=operator, target=rng.uniform(-8, 8), **given)
    coefficient = rng.choice([-2.0, -0.7, 0.0, 0.5, 1.5])
    if operator == "add":
        given["scale"] = rng.choice(["raw", "unit"])
    return Term(coefficient=coefficient, operator=operator, **given)


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


def condition(rng, tokens, averaging):
    """One to three tests, each met or not by a clear margin, half and half."""
    streams = {}
    plan_oracle.run(PLAIN, tokens, lambda h, place: streams.setdefault(place, h))
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


def plan(rng, tokens, averaging=True):
    """A plan for the request with these prompt tokens, or None."""
    if rng.random() < 0.1:
        return None
    terms = [term(rng) for _ in range(rng.randrange(1, 4))]
    while sum(one.operator == "ablate" for one in terms) > 1:
        terms.pop()  # two ablations may leave together, as a space: tests/ops/test_operators.py
    return Plan(
        tuple(terms) or (term(rng),),
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
