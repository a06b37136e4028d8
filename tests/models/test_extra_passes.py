"""Forwards inside ``generate`` that nobody announced: whose rows they bring, or an error."""

from __future__ import annotations

import pytest
import torch
from random_plans import MARK, llama, vector
from transformers import LogitsProcessor, LogitsProcessorList

from steerfast import SteerfastError, attach, steer

PROMPT = [5, 6, *MARK, 7]


class Asks(LogitsProcessor):
    """Asks the model for the rows at hand once more, laid out otherwise, by a forward of its own."""

    def __init__(self, model, layout):
        self.model, self.layout, self.apart = model, layout, []

    def __call__(self, tokens, scores):
        again = self.model(self.layout(tokens)).logits[:, -1]
        self.apart.append(float((again - self.layout(scores)).abs().max()))
        return scores


LAYOUTS = {
    "as they are": lambda rows: rows,
    "all, then all": lambda rows: rows.repeat(2, 1),
    "each twice": lambda rows: rows.repeat_interleave(2, 0),
    "each thrice": lambda rows: rows.repeat_interleave(3, 0),
}


def asked_again(layout, plans):
    """How far the rows of the extra passes are from those of the generation."""
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    with torch.no_grad(), attach(llama()) as handle, handle.use(plans):
        asks = Asks(handle.model, LAYOUTS[layout])
        handle.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([asks]),
        )
    assert len(asks.apart) == 3
    return max(asks.apart)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_of_more_rows_under_equal_plans_is_steered_as_under_one(layout):
    plan = steer(vector(1), 2.0)
    assert asked_again(layout, plan) < 1e-4
    assert asked_again(layout, [plan, steer(vector(1), 2.0)]) < 1e-4
    assert asked_again(layout, [None, None]) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_whose_rows_nobody_can_tell_apart_is_refused(layout):
    plans = [steer(vector(1), 2.0), steer(vector(2), -2.0)]
    if layout == "as they are":
        assert asked_again(layout, plans) < 1e-4
        return
    with pytest.raises(
        SteerfastError, match=r"with [46] rows that it had not prepared, and 2 plans"
    ):
        asked_again(layout, plans)
    with pytest.raises(SteerfastError, match="use one plan for all"):
        asked_again(layout, [plans[0], None])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=["greedy", "two beams", "three beams", "samples"],
)
def test_guidance_is_steered_row_by_row(how):
    """A list of plans gives each prompt what that plan alone gives it, in the pass without a prompt too."""
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    plans = [steer(vector(1), 2.0), steer(vector(2), -2.0)]
    given = {
        "max_new_tokens": 4,
        "pad_token_id": 0,
        "eos_token_id": None,
        "guidance_scale": 3.0,
        **how,
    }
    with torch.no_grad(), attach(llama()) as handle:

        def tokens(plan, seed=0):
            torch.manual_seed(seed)
            with handle.use(plan):
                return handle.model.generate(ids, attention_mask=torch.ones_like(ids), **given)

        both = tokens(plans)
        share = len(both) // 2
        alone = [tokens(plan) for plan in plans]
        same = tokens([plans[0], plans[0]])
    assert not torch.equal(alone[0], alone[1])
    if not how.get("do_sample"):  # samples of a batch are drawn together
        assert torch.equal(both[:share], alone[0][:share])
        assert torch.equal(both[share:], alone[1][share:])
    else:
        assert both.shape == alone[0].shape
        assert torch.equal(same, alone[0])
