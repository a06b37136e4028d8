"""Random requests for the oracle: prompts, and plans with every selector, schedule, condition and finish."""

from __future__ import annotations

import plan_oracle
import torch
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

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
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


PLAIN = llama()  # never patched: the oracle's


def vector(seed, positions=None):
    rng = torch.Generator().manual_seed(seed)
    shape = (D,) if positions is None else (positions, D)
    return SteeringVector(
        f"v{seed}", {at: torch.randn(shape, generator=rng) for at in range(LAYERS)}
    )


seeds = st.integers(1, 10_000)
prompts = st.builds(
    lambda before, after: [*before, *MARK, *after],
    st.lists(st.integers(1, 59), max_size=4),
    st.lists(st.integers(1, 63), max_size=5),
)


@st.composite
def selectors(draw):
    kind = draw(st.sampled_from(["name", "range", "end range", "mark", "first"]))
    if kind == "name":
        names = ["all", "prompt", "generated", "after_prompt", "last_prompt_token"]
        return draw(st.sampled_from(names))
    if kind == "range":
        start = draw(st.integers(0, 9))
        return Positions(start, draw(st.sampled_from([None, start + 1, start + 4, "prompt_end"])))
    if kind == "end range":
        start = draw(st.integers(-6, -1))
        return Positions(start, draw(st.sampled_from([None, "prompt_end", 5, 12])))
    if kind == "mark":
        return AfterSequence(draw(st.sampled_from([MARK, MARK[:1], MARK[1:]])))
    return First(draw(st.integers(1, 12)))


@st.composite
def terms(draw):
    select = draw(selectors())
    positions = select.count if isinstance(select, First) and draw(st.booleans()) else None
    given = {
        "vector": vector(draw(seeds), positions),
        "layers": tuple(draw(st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=2))),
        "site": draw(st.sampled_from(SITES)),
        "select": select,
    }
    if draw(st.integers(0, 3)) == 0:
        given["gate"] = Gate("sigmoid", vector(draw(seeds)))
    operator = draw(st.sampled_from(["add", "add", "ablate", "clamp", "add_relative"]))
    if operator == "clamp":
        return Term(operator=operator, target=draw(st.floats(-8, 8)), **given)
    coefficient = draw(st.sampled_from([-2.0, -0.7, 0.0, 0.5, 1.5]))
    if operator == "add":
        given["scale"] = draw(st.sampled_from(["raw", "unit"]))
    return Term(coefficient=coefficient, operator=operator, **given)


@st.composite
def schedules(draw):
    kind = draw(st.sampled_from([None, None, "points", "window", "ramp", "decay", "table"]))
    start, length = draw(st.integers(-6, 4)), draw(st.integers(1, 5))
    if kind == "points":
        offsets = sorted(draw(st.sets(st.integers(-8, 8), min_size=1, max_size=5)))
        return Schedule(tuple((at, draw(st.sampled_from([-1.0, 0.0, 0.5, 2.0]))) for at in offsets))
    if kind == "window":
        return Schedule.window(start, start + length, gain=1.5)
    if kind == "ramp":
        return Schedule.ramp(start, start + length, low=draw(st.sampled_from([0.0, 2.0])))
    if kind == "decay":
        return Schedule.decay(length, start=start)
    return None if kind is None else Schedule.table([0.0, 1.0, -1.0, 0.5][:length], start=start)


@st.composite
def conditions(draw, prompt):
    """One to three tests, each met or not by a clear margin, half and half."""
    streams = {}
    plan_oracle.run(PLAIN, prompt, lambda h, place: streams.setdefault(place, h))
    tests = []
    for _ in range(draw(st.integers(1, 3))):
        given = {
            "kind": draw(st.sampled_from(["cosine", "projection", "probe"])),
            "key": vector(draw(seeds)),
            "layer": draw(st.integers(0, LAYERS - 1)),
            "site": draw(st.sampled_from(SITES)),
            "over": draw(st.sampled_from(["last", "mean"])),
            "below": draw(st.booleans()),
        }
        value = plan_oracle.measured(Test(**given), streams, prompt)
        limit = value + draw(st.sampled_from([-0.05, 0.05]))
        tests.append(
            Test(
                **given, **({"bias": -limit} if given["kind"] == "probe" else {"threshold": limit})
            )
        )
    return Condition(tuple(tests), require=draw(st.sampled_from(["all", "any"])))


@st.composite
def plans(draw, prompt, averaging=True):
    if draw(st.integers(0, 5)) == 0:
        return None
    condition = draw(conditions(prompt)) if draw(st.integers(0, 2)) == 0 else None
    if condition is not None and condition.averages and not averaging:
        condition = None
    # Two ablations may leave together, as a space: tests/test_operators.py.
    one_ablation = st.lists(terms(), min_size=1, max_size=3).filter(
        lambda each: sum(term.operator == "ablate" for term in each) <= 1
    )
    return Plan(
        tuple(draw(one_ablation)),
        finish=draw(st.sampled_from(["none", "preserve", "shrink"])),
        schedule=draw(schedules()),
        condition=condition,
    )


@st.composite
def requests(draw, most=3):
    """[(prompt, plan or None)], one to three."""
    rows = draw(st.lists(prompts, min_size=most, max_size=most))
    return [(prompt, draw(plans(prompt))) for prompt in rows]
