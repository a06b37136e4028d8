"""The prefix cache: nobody gets keys and values that were steered otherwise, and everybody gets those that were not."""

from __future__ import annotations

import pytest
from engines import JOY, PLANS, answers, engine, prompt, sampling, tokens

import steerfast as sf

BLOCK = 32


@pytest.fixture(scope="module")
def llm(folder):
    with engine(folder) as llm:
        yield llm


@pytest.fixture
def ask(llm, oracle):
    """(tokens, cached tokens) of one request; the tokens have been compared with transformers'."""

    def ask(ids, plan, count=12):
        [out] = answers(llm, [ids], [sampling(plan, count)])
        assert tokens(out) == oracle.tokens(ids, plan, count)
        return tokens(out), out.num_cached_tokens

    return ask


@pytest.fixture(autouse=True)
def empty(llm):
    llm.reset_prefix_cache()


def test_steered_after_unsteered(ask):
    ids = prompt()
    assert ask(ids, None)[1] == 0
    assert ask(ids, PLANS["plus"])[1] == 0
    assert ask(ids, PLANS["plus"])[1] == 128  # the same plan twice
    assert ask(ids, None)[1] == 128


def test_unsteered_after_steered(ask):
    ids = prompt()
    assert ask(ids, PLANS["plus"])[1] == 0
    assert ask(ids, None)[1] == 0
    assert ask(ids, PLANS["minus"])[1] == 0  # two plans with a common prompt
    assert ask(ids, PLANS["plus"])[1] == 128
    assert ask(ids, PLANS["minus"])[1] == 128


def test_the_same_plan_written_otherwise(ask):
    again = sf.steer(
        sf.SteeringVector("another name", {1: JOY.at(1) * 3.0, 2: JOY.at(2)}), 1.0, layers=[1]
    )
    thrice = sf.steer(sf.SteeringVector("thrice", {1: JOY.at(1) * 3.0}), 1, layers=[1])
    ids = prompt()
    assert ask(ids, again)[1] == 0
    assert ask(ids, thrice)[1] == 128


def test_the_same_name_with_another_content(ask):
    other = sf.SteeringVector(JOY.name, {1: -JOY.at(1)})
    ids = prompt()
    ask(ids, sf.steer(JOY, 3.0, layers=[1]))
    assert ask(ids, sf.steer(other, 3.0, layers=[1]))[1] == 0


def test_what_is_not_steered_is_shared(ask):
    """A plan that leaves the prompt alone takes it from everybody and gives it to everybody."""
    ids = prompt()
    assert ask(ids, None)[1] == 0
    assert ask(ids, PLANS["generated"])[1] == 128
    other = prompt(seed=9)
    assert ask(other, PLANS["generated"])[1] == 0
    assert ask(other, None)[1] == 128
    # Steered from position 70 on: two whole blocks are everybody's.
    late = sf.steer(JOY, 3.0, layers=[1], select=sf.Positions(70))
    assert ask(ids, late)[1] == 64
    assert ask(ids, late)[1] == 128


def test_an_answer_becomes_part_of_the_next_prompt(ask):
    """Generated under a plan that steers what is generated: in the next turn the same tokens are prompt, and not steered."""
    ids, plan = prompt(), PLANS["generated"]
    first, _ = ask(ids, plan, 60)
    turn = [*ids, *first, *prompt(20, seed=5)]
    assert ask(turn, plan)[1] == 128  # as far as the first prompt's own whole blocks
    assert ask(turn, None)[1] >= 128
    # A plan that steers everything meets its own answer as it was.
    everything = PLANS["plus"]
    first, _ = ask(ids, everything, 60)
    turn = [*ids, *first, *prompt(20, seed=5)]
    assert ask(turn, everything)[1] == (140 + 59) // BLOCK * BLOCK


def test_what_counts_from_the_prompts_end(ask):
    """A longer prompt that begins with a shorter one: the last token of one is in the middle of the other."""
    ids = prompt(200)
    plan = sf.steer(JOY, 4.0, layers=[0], select="last_prompt_token")
    assert ask(ids[:96], plan)[1] == 0  # ends with a block
    assert ask(ids, plan)[1] == 64  # the third block was steered at its end
    assert ask(ids, plan)[1] == 192
    ramp = sf.steer(JOY, 3.0, layers=[0], schedule=sf.Schedule.ramp(-100, 0, 0.1, 1.0))
    assert ask(ids[:160], ramp)[1] == 0
    assert ask(ids, ramp)[1] == 0  # other gains at the same tokens
    assert ask(ids[:160], ramp)[1] == 128


def test_several_samples_of_one_request(llm, oracle):
    """n > 1 makes requests of its own out of one; each is steered."""
    ids, plan = prompt(), PLANS["plus"]
    [out] = answers(llm, [ids], [sampling(plan, n=3, temperature=1.0, seed=7, top_k=1)])
    assert [list(each.token_ids) for each in out.outputs] == [oracle.tokens(ids, plan)] * 3
