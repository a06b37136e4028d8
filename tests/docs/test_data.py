"""docs/data.md is true: its files are read, its vectors are mean differences, its chat prompts have one BOS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from steerfast import contrast
from steerfast.plans.term import Scale

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def mean_stream(model, tokenizer, prompt, continuation, layer):
    """What "mean" reads, one text at a time: the stream of the continuation's tokens at a layer's output."""
    if not isinstance(prompt, str):
        how = {"tokenize": False, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(list(prompt), **how)
    own = {
        "add_special_tokens": not prompt.startswith(tokenizer.bos_token)
    }  # one BOS, whoever writes it
    ids = tokenizer(prompt + continuation, return_tensors="pt", **own).input_ids
    first = len(tokenizer(prompt, **own).input_ids)  # byte by byte: no token crosses the border
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return states[layer + 1][0, first:].double().mean(0)


@pytest.fixture(scope="module")
def given(page):
    return page("data.md")


def test_the_examples_run(given):
    model, tokenizer, moods = given["model"], given["tokenizer"], given["moods"]
    assert (moods.name, len(moods.train), len(moods.held_out)) == ("mood", 3, 2)
    chatty = [contrast.ContrastPair(*pair) for pair in given["pairs"]]
    for name, pairs in (("mood", moods.train), ("chatty", chatty), ("warm", given["persona"])):
        difference = sum(
            mean_stream(model, tokenizer, *p.sides[0], 10)
            - mean_stream(model, tokenizer, *p.sides[1], 10)
            for p in pairs
        ) / len(pairs)
        torch.testing.assert_close(given[name].at(10), difference.float(), rtol=1e-4, atol=1e-5)
    assert (given.folder / "vectors/mood.safetensors").is_file()
    assert given["prose"].provenance["counts"] == {"positive": 2, "negative": 2}

    good, bad = (
        sum(mean_stream(model, tokenizer, one[:-1], one[-1]["content"], 10) for one in each)
        / len(each)
        for each in (given["good"], given["bad"])
    )
    torch.testing.assert_close(given["warmer"].at(10), (good - bad).float(), rtol=1e-4, atol=1e-5)

    assert (given["inputs"].input_ids == tokenizer.bos_token_id).sum() == 1
    twice = tokenizer(
        tokenizer.apply_chat_template([{"role": "user", "content": "How are you?"}], tokenize=False)
    )
    assert twice.input_ids.count(tokenizer.bos_token_id) == 2  # the trap is there
    plain = model.generate(**given["inputs"], max_new_tokens=8, do_sample=False)
    assert not torch.equal(given["answer"], plain)

    said = given.said
    effects = [float(x) for x in re.findall(r"^[+-]0\.\d: ([+-][\d.]+), at random", said, re.M)]
    assert len(effects) == 3
    assert effects[1] == 0.0
    assert effects[0] != effects[2]
    assert set(given["best"]) == {4, 6}
    assert f"the steepest layer: {max(given['best'], key=given['best'].get)}" in said


def test_it_names_what_there_is():
    shipped = re.search(r"Five sets ship, by name:\s(.*?) \(", PAGE, re.DOTALL)[1]
    assert tuple(re.findall(r"`(\w+)`", shipped)) == contrast.shipped()
    scales = re.findall(r'^\| `"(\w+)"`.*\| (?:the vector|all|length)', PAGE, re.M)
    assert tuple(scales) == get_args(Scale)


def test_the_stream_that_a_site_means(given):
    """`resid_post` of layer 10 is the layer's output, hidden_states[11], and resid_pre of layer 11."""
    from steerfast import SteeringVector, attach, steer

    model, ids = given["model"], torch.tensor([[0, 5, 6, 7]])
    vector = SteeringVector("v", {10: torch.ones(32), 11: torch.ones(32)})
    with torch.no_grad(), attach(model) as handle:
        plain = model(ids, output_hidden_states=True).hidden_states[11]
        for site, layer in (("resid_post", 10), ("resid_pre", 11)):
            with handle.use(steer(vector, 3.0, layers=[layer], site=site)):
                got = model(ids, output_hidden_states=True).hidden_states[11]
            torch.testing.assert_close(got, plain + 3.0, rtol=1e-5, atol=1e-5)


@pytest.mark.model
def test_three_pairs_do_what_the_table_says(smollm2):
    from steerfast import attach, extract_pairs
    from steerfast.experiments.dose import dose_response

    table = re.search(r"<!-- pairs -->\n(.*?)<!-- /pairs -->", PAGE, re.DOTALL)[1]
    rows = [
        [float(cell) for cell in row.strip("| ").split(" | ")] for row in table.splitlines()[2:]
    ]
    assert [int(row[0]) for row in rows] == [3, 8, 16, 32, 64]
    model, tokenizer, _ = smollm2
    sentiment, (pairs, _, down, up) = contrast.load("sentiment"), rows[0]
    few = extract_pairs(
        model, tokenizer, sentiment.train[: int(pairs)], name="v", position="mean", layers=[10]
    )
    with attach(model) as handle:
        found = dose_response(
            handle, tokenizer, few, sentiment.held_out, layers=[10], coefficients=(-0.2, 0.2)
        )
    assert [point.effect for point in found] == pytest.approx([down, up], abs=0.06)
