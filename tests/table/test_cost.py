"""What a plan costs is what a table has to have for it, no more and no less."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import tiny_llama

from steerfast import (
    Condition,
    First,
    Plan,
    SteeringVector,
    Term,
    Test,
    attach,
    cost,
    steer,
)
from steerfast.table.table import Table, TableFullError

LAYERS, WIDTH = 6, 8


def vector(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return SteeringVector("v", dict(enumerate(torch.randn(LAYERS, WIDTH, generator=draw))))


A, B = vector(), vector(1)
PLANS = {  # the phases, slots, rows of the bank and programs that one counts by hand
    "one layer": (steer(A, 2.0, layers=3), ("all",), 1, 1, 0),
    "all layers": (steer(A, 2.0), ("all",), 1, LAYERS, 0),
    "two vectors": (Plan((Term(A, 1.0, 3), Term(B, 1.0, 3))), ("all",), 1, 1, 0),
    "an answer": (steer(A, 2.0, layers=3, select="generated"), ("generated",), 1, 1, 0),
    "two stretches": (
        Plan((Term(A, 1.0, 3, select="prompt"), Term(B, 1.0, 3, select="generated"))),
        ("prompt", "generated"), 2, 2, 0,
    ),
    "one removed everywhere": (
        steer(SteeringVector("w", dict.fromkeys(range(LAYERS), A.at(0))), operator="ablate"),
        ("all",), 1, 1, 1,
    ),
    "each removed": (steer(A, operator="ablate"), ("all",), 1, LAYERS, LAYERS),
    "nothing": (steer(A, 0.0), (), 0, 0, 0),
    "a condition": (steer(A, 1.0, layers=4, condition=Condition(Test("cosine", B, 2))), None, 2, 2, 0),
    "by position": (
        steer(SteeringVector("p", {2: torch.randn(3, WIDTH)}), select=First(3)), None, 3, 3, 0
    ),
}  # fmt: skip


LEAST = ("slots", "bank_rows")  # a table has one of each, needed or not


def table_for(found, **less):
    room = {"slots": found.slots, "bank_rows": found.bank_rows, "programs": found.programs}
    room = {name: room[name] - less.get(name, 0) for name in room}
    room |= {name: max(room[name], 1) for name in LEAST}
    return Table(LAYERS, WIDTH, **room)


@pytest.mark.parametrize("name", PLANS)
def test_the_cost_is_what_one_counts(name):
    plan, phases, *counts = PLANS[name]
    found = cost(plan, LAYERS)
    assert list(found[1:4]) == counts
    if phases is not None:
        assert found.phases == phases
    assert len(found.phases) == found.slots


@pytest.mark.parametrize("name", PLANS)
def test_a_table_of_that_size_holds_it_and_a_smaller_one_does_not(name):
    plan = PLANS[name][0]
    found = cost(plan, LAYERS)
    table = table_for(found)
    table.acquire(plan)
    tensors = (table.records, table.reads, table.bank)
    unused = table.records.nbytes if not found.slots else 0
    unused += table.bank.nbytes if not found.bank_rows else 0
    assert found.bytes == sum(tensor.nbytes for tensor in tensors) - unused
    for what in ("slots", "bank_rows", "programs"):
        if getattr(found, what) > (what in LEAST):
            with pytest.raises(TableFullError):
                table_for(found, **{what: 1}).acquire(plan)


def test_a_model_tells_its_layers():
    model = tiny_llama(layers=LAYERS, hidden=WIDTH, heads=2)
    plan = steer(A, 2.0)
    assert cost(plan, model) == cost(plan, LAYERS)
    with attach(model):
        assert cost(plan, model) == cost(plan, LAYERS)


def test_what_cannot_run_has_no_cost():
    with pytest.raises(ValueError, match="names layer 5, but the model has 5 layers"):
        cost(steer(A, 1.0), 5)
    with pytest.raises(TypeError, match="model, or its number of layers, is an integer"):
        cost(steer(A, 1.0), object())


def test_layers_are_counted_in_the_decoder_beside_a_vision_tower():
    from tiny_decoders import tiny_config
    from transformers import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING["gemma3"], 4, {})
    assert not hasattr(config, "num_hidden_layers")
    model = type("Beside", (), {"config": config})()
    plan = steer(SteeringVector("v", {2: torch.ones(64)}))
    assert cost(plan, model) == cost(plan, 4)
