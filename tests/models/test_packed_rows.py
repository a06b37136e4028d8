"""Several sequences in one row, told by position ids, and masks and position ids that are not the usual ones.

What is right comes from plain hooks on each sequence in a forward of its own.
"""

from __future__ import annotations

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import DataCollatorWithFlattening

from steerfast import (
    AfterSequence,
    Condition,
    First,
    Positions,
    Schedule,
    SteerfastError,
    SteeringVector,
    Test,
    attach,
    steer,
)

LAYER = 1
SAMPLES = [[5, 6, 7, 8], [9, 60, 11], [12, 60, 13, 14, 60, 15], [16, 60]]


def tiny():
    return tiny_llama(hidden=32, layers=3, vocabulary=64, heads=2, spread=0.2)


VECTOR = SteeringVector("v", {LAYER: torch.randn(32, generator=torch.Generator().manual_seed(3))})
STOCK = tiny()


@torch.no_grad()
def alone(sample, gain=lambda t: 0.0, **more):
    """Logits [T, V] of one sequence by a plain hook that adds ``gain(t)`` times the vector at its position t."""

    def hook(module, inputs, output):
        gains = torch.tensor([gain(t) for t in range(len(sample))])
        return output + gains[None, :, None] * VECTOR.at(LAYER)

    handle = STOCK.model.layers[LAYER].register_forward_hook(hook)
    found = STOCK(torch.tensor([sample]), use_cache=False, **more).logits[0]
    handle.remove()
    return found


def flattened(samples=SAMPLES):
    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": s} for s in samples])
    return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}


@torch.no_grad()
def packed(plans, batch=None, use=None):
    with attach(tiny()) as handle, handle.use(plans, **(use or {})):
        return handle.model(**(batch or flattened()), use_cache=False).logits.flatten(0, 1)


@pytest.mark.parametrize(
    ("select", "samples", "acts"),
    [
        ("all", SAMPLES, lambda t, s: True),
        ("prompt", SAMPLES, lambda t, s: True),
        (First(2), SAMPLES, lambda t, s: t < 2),
        (Positions(1, 3), SAMPLES, lambda t, s: 1 <= t < 3),
        (Positions(-2), SAMPLES, lambda t, s: t >= len(s) - 2),
        ("last_prompt_token", SAMPLES, lambda t, s: t == len(s) - 1),
        ("after_prompt", SAMPLES, lambda t, s: t >= len(s) - 1),
        (AfterSequence((60,)), SAMPLES[1:], lambda t, s: t >= len(s) - 1 - s[::-1].index(60)),
    ],
    ids=["all", "prompt", "first", "places", "last two", "last", "after", "sequence"],
)
def test_selectors_count_within_each_sequence(select, samples, acts):
    expected = [alone(s, lambda t, s=s: 2.0 * acts(t, s)) for s in samples]
    found = packed(steer(VECTOR, 2.0, layers=[LAYER], select=select), flattened(samples))
    torch.testing.assert_close(found, torch.cat(expected))


def test_a_schedule_and_lengths_that_are_given_for_each_sequence():
    """An answer behind each prompt, as in training on pairs: (prompt's tokens) of each."""
    lengths = [2, 1, 4, 1]
    plan = steer(VECTOR, 2.0, layers=[LAYER], schedule=Schedule(((-1, 1.0), (1, 0.25))))

    def gain(t, length):
        return 2.0 * min(max(1.0 - 0.375 * (t - length + 1), 0.25), 1.0)

    expected = [alone(s, lambda t, n=n: gain(t, n)) for s, n in zip(SAMPLES, lengths, strict=True)]
    torch.testing.assert_close(packed(plan, use={"prompt_lengths": lengths}), torch.cat(expected))
    answers = steer(VECTOR, 2.0, layers=[LAYER], select="generated")
    expected = [
        alone(s, lambda t, n=n: 2.0 * (t >= n)) for s, n in zip(SAMPLES, lengths, strict=True)
    ]
    torch.testing.assert_close(
        packed(answers, use={"prompt_lengths": lengths}), torch.cat(expected)
    )
    prompts = [sample[:length] for sample, length in zip(SAMPLES, lengths, strict=True)]
    torch.testing.assert_close(packed(answers, use={"prompts": prompts}), torch.cat(expected))
    with pytest.raises(ValueError, match="3 prompt lengths, but the batch packs 4 sequences"):
        packed(answers, use={"prompt_lengths": lengths[:3]})


def test_a_plan_for_each_sequence_or_for_each_row():
    scales = [2.0, -1.0, 0.0, 3.0]
    plans = [steer(VECTOR, scale, layers=[LAYER]) if scale else None for scale in scales]
    expected = [
        alone(s, lambda t, scale=scale: scale) for s, scale in zip(SAMPLES, scales, strict=True)
    ]
    torch.testing.assert_close(packed(plans), torch.cat(expected))
    rows = flattened(SAMPLES[:2]), flattened(SAMPLES[1:2] + SAMPLES[:1])
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    order = [(0, 0), (1, 0), (1, 1), (0, 1)]  # (sample, row)
    expected = [alone(SAMPLES[s], lambda t, row=row: [2.0, -1.0][row]) for s, row in order]
    torch.testing.assert_close(packed(plans[:2], batch), torch.cat(expected))
    first = [steer(VECTOR, scale, layers=[LAYER], select=First(1)) for scale in (2.0, -1.0)]
    expected = [
        alone(SAMPLES[s], lambda t, row=row: [2.0, -1.0][row] * (t < 1)) for s, row in order
    ]
    torch.testing.assert_close(packed(first, batch), torch.cat(expected))
    with pytest.raises(ValueError, match="3 plans, but the batch packs 4 sequences into 1 rows"):
        packed(plans[:3])


def test_conditions_are_decided_for_each_sequence():
    """By the projection of its own last token, in one forward."""
    read = []
    handle = STOCK.model.layers[0].register_forward_hook(
        lambda module, inputs, output: read.append(output[0, -1] @ key)
    )
    key = torch.randn(32, generator=torch.Generator().manual_seed(5))
    key /= key.norm()
    for sample in SAMPLES:
        alone(sample)
    handle.remove()
    threshold = float(torch.stack(read).mean())
    test = Test("projection", SteeringVector("k", {0: key}), 0, threshold=threshold, over="last")
    plan = steer(VECTOR, 2.0, layers=[LAYER], select="last_prompt_token", condition=Condition(test))
    expected = [
        alone(s, lambda t, s=s, one=one: 2.0 * (t == len(s) - 1 and float(one) > threshold))
        for s, one in zip(SAMPLES, read, strict=True)
    ]
    assert len({float(one) > threshold for one in read}) == 2
    torch.testing.assert_close(packed(plan), torch.cat(expected))


def test_padding_beside_packed_sequences():
    """A mask says what is padding, position ids where sequences begin. Attention is that of transformers: of one row."""
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 0, 0]])
    where = torch.tensor([[1, 0, 1, 2, 0, 1, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0]])
    gains = torch.tensor([0, 2, 0, 0, 2, 0, 0, 0])

    def hook(module, inputs, output):
        return output + gains[None, :, None] * VECTOR.at(LAYER)

    handle = STOCK.model.layers[LAYER].register_forward_hook(hook)
    with torch.no_grad():
        expected = STOCK(ids, attention_mask=mask, position_ids=where).logits[0, 1:6]
    handle.remove()
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": where}
    found = packed(steer(VECTOR, 2.0, layers=[LAYER], select=First(1)), batch)
    torch.testing.assert_close(found[1:6], expected)


@pytest.mark.parametrize("numbers", [[1, 1, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3], [-1, 1, 1, 7, 1, 1]])
def test_a_token_is_whatever_is_not_zero_in_a_mask(numbers):
    """As transformers reads it; multipack writes the numbers of samples."""
    sample = [5, 6, 7, 8, 9, 10]
    batch = {"input_ids": torch.tensor([sample]), "attention_mask": torch.tensor([numbers])}
    expected = alone(sample, lambda t: 2.0 * (3 <= t < 5))
    plan = steer(VECTOR, 2.0, layers=[LAYER], select=Positions(3, 5))
    torch.testing.assert_close(packed(plan, batch), expected)
    plan = steer(VECTOR, 2.0, layers=[LAYER], select="last_prompt_token")
    expected = alone(sample, lambda t: 2.0 * (t == 5))
    torch.testing.assert_close(packed(plan, batch), expected)


@pytest.mark.parametrize("shift", [100, 1], ids=str)
def test_position_ids_that_do_not_start_at_nought(shift):
    """They go on with a document; its tokens here are counted from the first that is here."""
    sample = [5, 6, 7, 8]
    places = torch.arange(4)[None] + shift
    batch = {"input_ids": torch.tensor([sample]), "position_ids": places}
    for select, acts in (("last_prompt_token", {3}), (Positions(1, 3), {1, 2}), (First(2), {0, 1})):
        expected = alone(sample, lambda t, acts=acts: 2.0 * (t in acts), position_ids=places)
        found = packed(steer(VECTOR, 2.0, layers=[LAYER], select=select), batch)
        torch.testing.assert_close(found, expected)


def test_position_ids_that_skip_some_are_of_one_sequence():
    """As where tokens were dropped from a prompt."""
    sample, places = [5, 6, 7, 8], torch.tensor([[0, 1, 5, 9]])
    mask = torch.ones(1, 4, dtype=torch.int64)
    batch = {"input_ids": torch.tensor([sample]), "position_ids": places, "attention_mask": mask}
    expected = alone(sample, lambda t: 2.0 * (t == 2), position_ids=places, attention_mask=mask)
    found = packed(steer(VECTOR, 2.0, layers=[LAYER], select=Positions(2, 3)), batch)
    torch.testing.assert_close(found, expected)


def test_packed_rows_behind_a_cache_are_refused():
    with attach(tiny()) as handle, handle.use(steer(VECTOR, 2.0, layers=[LAYER], select=First(1))):
        cache = handle.model(torch.tensor([[5, 6]]), use_cache=True).past_key_values
        with pytest.raises(SteerfastError, match="without a cache"):
            handle.model(**flattened(), past_key_values=cache)


def test_the_next_forward_is_routed_anew():
    """Nothing of a packed one stays behind."""
    plan = steer(VECTOR, 2.0, layers=[LAYER], select="last_prompt_token")
    with attach(tiny()) as handle, handle.use(plan), torch.no_grad():
        handle.model(**flattened(), use_cache=False)
        found = handle.model(torch.tensor([SAMPLES[2]]), use_cache=False).logits[0]
    torch.testing.assert_close(found, alone(SAMPLES[2], lambda t: 2.0 * (t == 5)))


# -- where a prompt ends, and nobody said -----------------------------------------------------------------


@pytest.mark.parametrize("select", ["generated", "after_prompt", "prompt", Positions(-1)], ids=str)
def test_a_loop_on_a_cache_that_nobody_prepared_is_refused(select):
    """``generate`` called through the class, which attach does not replace, or a loop of one's own."""
    model, ids = tiny(), torch.tensor([[5, 6, 7]])
    with attach(model) as handle, handle.use(steer(VECTOR, 2.0, layers=[LAYER], select=select)):
        with pytest.raises(SteerfastError, match="prompt_lengths"):
            type(model).generate(model, ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        with handle.use(None):
            cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(SteerfastError, match="prompt_lengths"):
            model(ids[:, :1], past_key_values=cache)


def test_a_loop_on_a_cache_that_needs_no_end_is_right():
    """``all``, and positions from the start, are what they are in generate."""
    model, ids = tiny(), torch.tensor([[5, 6, 7]])
    for select in ("all", First(2), Positions(2, 5)):
        plan = steer(VECTOR, 2.0, layers=[LAYER], select=select)
        asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        with attach(model) as handle, handle.use(plan):
            by_class = type(model).generate(model, ids, **asked)
            assert torch.equal(by_class, model.generate(ids, **asked))


def test_a_plan_that_acts_behind_prompts_only_is_refused_where_all_is_prompt():
    """Rather than steer nothing; told where prompts end, it is right."""
    plan = steer(VECTOR, 2.0, layers=[LAYER], select="generated")
    sample = SAMPLES[2]
    batch = {"input_ids": torch.tensor([sample])}
    with pytest.raises(SteerfastError, match=r"prompt_lengths=\[\.\.\.\]"):
        packed(plan, batch)
    found = packed(plan, batch, {"prompt_lengths": [4]})
    torch.testing.assert_close(found, alone(sample, lambda t: 2.0 * (t >= 4)))
