"""docs/use.md is true: what it steers is what plain hooks steer, what it says is compared has a test."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use.md").read_text(encoding="utf-8")
PLAN = re.compile(r"plan \w{8}")  # of digests, which depend on the vector
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def given(page):
    return page("use.md")


def test_the_examples_run(given, hooked):
    model, joy = given["model"], given["joy"]
    assert "forward" not in vars(model.model.layers[0])  # every example detached
    one = joy.stream_norms[10] * joy.at(10) / joy.at(10).norm()
    nothing = torch.zeros_like(one)

    # the whole of it: [None, happy]
    with hooked(model, {10: torch.stack([nothing, 0.3 * one])}):
        want = model.generate(**given["prompts"], max_new_tokens=20, do_sample=False)
    assert torch.equal(given["out"], want)
    assert not torch.equal(want[0], want[1])

    batch = given["batch"]
    doses = {
        "all_happy": (0.3, 0.3, 0.3),
        "each": (0.3, 0.0, -0.3),
        "changed": (0.0, 0.0, 0.3),
        "plain": (0.0, 0.0, 0.0),
    }
    for name, rows in doses.items():
        with hooked(model, {10: torch.stack([dose * one for dose in rows])}):
            assert torch.equal(given[name], model.generate(**batch, **GREEDY)), name
    assert not torch.equal(given["plain"], given["each"])

    # what was steered: all real tokens of two rows, then one each of them for every further token
    real = batch.attention_mask.sum(1)
    assert given["seen"][0] == real[0] + real[2]
    assert given["seen"][1:] == [2] * 7
    assert f"{sum(given['seen'])} rows steered in 8 forwards" in given.said
    shown = re.search(r"^2 of 3 rows steered\n(?: .*\n)+", PAGE, re.M)[0]
    assert PLAN.sub("", shown) in PLAN.sub("", given.said)


def test_pipelines_and_streamers(given, hooked):
    model, tokenizer, joy = given["model"], given["tokenizer"], given["joy"]
    one = joy.stream_norms[10] * joy.at(10) / joy.at(10).norm()
    prompts = tokenizer(["My day was"] * 2, return_tensors="pt")
    with hooked(model, {10: torch.stack([0.3 * one, -0.3 * one])}):
        out = model.generate(**prompts, **GREEDY)
    texts = [text for (text,) in ([one["generated_text"] for one in row] for row in given["texts"])]
    assert texts == tokenizer.batch_decode(out, skip_special_tokens=True)
    assert texts[0] != texts[1]
    answer = out[0, prompts.input_ids.shape[1] :]
    for tokens, added in zip(given["both"], (0.3 * one, -0.3 * one), strict=True):
        with hooked(model, {10: torch.stack([added])}):
            assert torch.equal(tokens, model.generate(**given["one"], **GREEDY))
    assert "".join(given["pieces"]) == tokenizer.decode(answer, skip_special_tokens=True)


def test_forwards_and_loops_of_ones_own(given, hooked):
    model, joy = given["model"], given["joy"]
    assert (given["behind_prompt"], given["behind_sequence"]) == (5, 6)
    assert given["first_of_two"] == 3
    ids, raw = given["ids"], 4.0 * joy.at(10)

    def behind(module, args, output):  # token 8 is the fourth: it and what follows
        return output + torch.cat([torch.zeros(3, 32), raw.expand(6, -1)])[None]

    hook = model.model.layers[10].register_forward_hook(behind)
    with torch.no_grad():
        torch.testing.assert_close(given["logits"], model(ids).logits, rtol=1e-5, atol=1e-5)
    hook.remove()
    loop = torch.cat(given["new"], 1)
    model.generation_config = GenerationConfig(pad_token_id=1)
    one = joy.stream_norms[10] * joy.at(10) / joy.at(10).norm()
    batch, plain = copy.copy(given["batch"]), torch.zeros(32)
    width = batch.input_ids.shape[1]
    with hooked(model, {10: torch.stack([0.3 * one, plain, plain])}):
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, width:]
    assert torch.equal(out[:2], loop[:2])  # the third row: after_prompt, below
    with given["attach"](model) as handle, handle.use(given["answer_only"]):
        row = {name: values[2:] for name, values in batch.items()}
        out = model.generate(**row, max_new_tokens=4, do_sample=False)[:, width:]
    assert torch.equal(out, loop[2:])


def test_what_works_has_a_test_that_says_so():
    table = re.search(r"<!-- works with -->\n(.*?)<!-- /works with -->", PAGE, re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) >= 12
    for what, _, test in rows:
        file, name = re.findall(r"`([\w.]+)`", test)
        (path,) = (ROOT / "tests").rglob(file)
        assert f"\ndef {name}(" in path.read_text(encoding="utf-8"), what
