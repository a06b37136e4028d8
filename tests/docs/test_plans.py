"""docs/plans.md is true: its tables are what a model's rows get, its Python runs, its JSON is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import AutoTokenizer

import steerfast
from steerfast import Plan, SteeringVector, attach, steer
from steerfast.io.plans import plan_from_json
from steerfast.table.entry import UNSTEERED

PAGE = (Path(__file__).parents[2] / "docs/plans.md").read_text()
PROMPT, LENGTH = 5, 9
NAMES = {name: getattr(steerfast, name) for name in ("AfterSequence", "First", "Positions")}


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden=32, layers=12, vocabulary=258, heads=2, eos_token_id=1)


def vector(name, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(32, generator=generator) for layer in (10, 11)}
    return SteeringVector(name, directions, {10: 3.0, 11: 3.0})


def rows_of(name, columns):
    body = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in body.splitlines()]
    rows = rows[2:]
    assert len(rows) >= 5
    assert all(len(row) == columns for row in rows)
    return rows


@pytest.mark.parametrize("row", rows_of("selectors", 3), ids=lambda row: row[0])
def test_selectors_act_where_the_table_says(row, model):
    select = eval(row[0].removesuffix(" (default)").strip("`"), NAMES)
    ids = torch.tensor([[3, 4, 7, 8, 9, 10, 11, 12, 13]])  # 7, 8 end at position 3
    given = {"prompt_lengths": [PROMPT], "prompts": [ids[0, :PROMPT].tolist()]}
    with attach(model) as handle, handle.use(steer(vector("joy", 1), select=select), **given):
        model(ids)
        slots = handle._shared.state.routing.rows.slot[:LENGTH].tolist()
    marks = "".join("-" if slot == UNSTEERED else "s" for slot in slots)
    assert row[2].strip("`") == f"{marks[:PROMPT]} {marks[PROMPT:]}"


@pytest.mark.parametrize("row", rows_of("schedules", 2), ids=lambda row: row[0])
def test_schedules_give_the_gains_of_the_table(row, model):
    schedule = eval(row[0].strip("`"), {"Schedule": steerfast.Schedule})
    said = [float(value) for value in row[1].split(",")]
    assert [schedule.at(offset) for offset in range(-1, 5)] == pytest.approx(said, abs=1e-4)
    plan = steer(vector("joy", 1), schedule=schedule)
    with attach(model) as handle, handle.use(plan, prompt_lengths=[PROMPT]):
        model(torch.arange(3, 3 + PROMPT + 5)[None])
        gains = handle._shared.state.routing.rows.gain[PROMPT - 1 : PROMPT + 5].tolist()
    assert gains == pytest.approx(said, abs=1e-4)


def test_the_examples_run(page, model, tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    joy, calm = vector("joy", 1), vector("calm", 2)
    given = page("plans.md", joy=joy, calm=calm, model=model, tokenizer=tokenizer)
    plans = {name for name, value in given.items() if isinstance(value, Plan)}
    assert plans == {
        "answer_only", "tail_of_prompt", "reply", "both", "opening", "fading", "only_if", "unless",
    }  # fmt: skip
    assert given["out"].shape == (2, given["prompts"].input_ids.shape[1] + 8)
    assert "rows steered" in given.said
    assert all(0 < len(answer.tokens) <= 8 for answer in given["answers"])
    assert len(given["answers"][1].tokens) <= 4
    assert "forward" not in vars(model.model.layers[0])  # every example detached


def test_the_json_is_read():
    text = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
    plan = plan_from_json(text, {name: vector(name, 1) for name in ("joy", "calm")})
    assert plan.schedule.at(8) == 0.5
    assert plan.terms[0].select == steerfast.Positions(-3, "prompt_end")
    assert plan.condition.tests[0].layer == 10
