"""Where a prompt begins and ends when nobody says it plainly: inferred masks, embeddings, caches, chunks. Against the oracle."""

from __future__ import annotations

import pytest
import torch
from plan_oracle import outcome
from random_plans import MARK, PLAIN, llama, vector
from transformers import DynamicCache, StaticCache

from steerfast import AfterSequence, Positions, SteerfastError, attach, steer

PROMPTS = [[5, *MARK, 7, 8, 9], [11, 12, *MARK]]
AFTER_MARK = steer(vector(1), 2.0, select=AfterSequence(MARK))
HOW = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
SCORES = {"output_scores": True, "return_dict_in_generate": True}


def padded(prompts, left=True):
    width = max(map(len, prompts))
    rows = [
        [0] * (width - len(row)) + row if left else row + [0] * (width - len(row))
        for row in prompts
    ]
    return torch.tensor(rows)


def is_right(out, prompts, plan, **given):
    """Tokens and scores of ``generate`` are those of one sequence at a time, without batch or cache."""
    new = out.sequences[:, -HOW["max_new_tokens"] :].tolist()
    scores = torch.stack(out.scores, 1)
    for row, prompt in enumerate(prompts):
        wanted, _ = outcome(PLAIN, prompt + new[row], prompt, plan)
        torch.testing.assert_close(
            scores[row].double(), wanted[len(prompt) - 1 : -1].double(), rtol=2e-4, atol=2e-3
        )


@pytest.mark.parametrize(
    "select", [AfterSequence(MARK), Positions(-2), "generated", "all"], ids=repr
)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_mask_that_generate_infers_tells_padding_from_prompt(select, beams):
    plan = steer(vector(1), 2.0, select=select)
    with torch.no_grad(), attach(llama()) as handle, handle.use(plan):
        more = {"num_beams": beams, "num_return_sequences": beams}
        ids = padded(PROMPTS)
        inferred = handle.model.generate(ids, **HOW, **SCORES, **more)
        given = handle.model.generate(
            ids, attention_mask=(ids != 0).long(), **HOW, **SCORES, **more
        )
    assert torch.equal(inferred.sequences, given.sequences)
    if beams == 1:
        is_right(inferred, PROMPTS, plan)


def test_embeddings_with_the_ids_that_they_stand_for():
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), attach(llama()) as handle:
        embeddings = handle.model.get_input_embeddings()(ids)
        with handle.use(AFTER_MARK, prompts=[PROMPTS[0]]):
            out = handle.model.generate(inputs_embeds=embeddings, **HOW, **SCORES)
        is_right(out, PROMPTS[:1], AFTER_MARK)
        with (
            handle.use(AFTER_MARK),
            pytest.raises(SteerfastError, match=r"give them: handle\.use\(plans, prompts="),
        ):
            handle.model.generate(inputs_embeds=embeddings, **HOW)
        with (
            handle.use(AFTER_MARK, prompts=[PROMPTS[1]]),
            pytest.raises(ValueError, match=r"row 0 has 6 tokens, but its ids .* are 4"),
        ):
            handle.model.generate(inputs_embeds=embeddings, **HOW)


def test_a_new_turn_behind_a_cache_with_the_whole_prompt():
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), attach(llama()) as handle, handle.use(AFTER_MARK, prompts=[PROMPTS[0]]):
        cache = DynamicCache(config=handle.model.config)
        handle.model(ids[:, :2], past_key_values=cache)
        mask = torch.ones_like(ids)
        turn = {"attention_mask": mask, "past_key_values": cache}
        out = handle.model.generate(ids[:, 2:], **turn, **HOW, **SCORES)
    is_right(out, PROMPTS[:1], AFTER_MARK)


@pytest.mark.parametrize(
    "plans", [steer(vector(1), select="generated"), [steer(vector(1))] * 2], ids=["", "list"]
)
def test_token_healing_is_refused_where_it_would_move_a_cut(plans):
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    ids = ids if isinstance(plans, list) else ids[:1]
    with torch.no_grad(), attach(llama()) as handle, handle.use(plans):
        with pytest.raises(SteerfastError, match="token_healing changes the end of each prompt"):
            handle.model.generate(ids, token_healing=True, tokenizer=None, **HOW)
        handle.model.generation_config.token_healing = True
        with pytest.raises(SteerfastError, match="switch it off"):
            handle.model.generate(ids, tokenizer=None, **HOW)
        handle.model.generation_config.token_healing = False
        handle.model.generate(ids, attention_mask=torch.ones_like(ids), **HOW)


@pytest.mark.parametrize(
    "select", ["prompt", "generated", "after_prompt", Positions(-2), AfterSequence(MARK)], ids=repr
)
def test_forwards_over_a_static_cache_are_those_over_any(select):
    """It keeps how much it holds in a tensor, of which a forward has to know whether that is nothing."""
    ids, length = torch.tensor([[*PROMPTS[0], 20, 21]]), len(PROMPTS[0])
    plan = steer(vector(1), 2.0, select=select)
    for known in ({"prompts": [PROMPTS[0]]}, {}):
        with torch.no_grad(), attach(llama()) as handle, handle.use(plan, **known):
            cache = StaticCache(config=handle.model.config, max_cache_len=16)
            if select == "generated" and not known:
                with pytest.raises(SteerfastError, match="counts from the prompt's end"):
                    handle.model(ids[:, :length], past_key_values=cache)
                continue
            first = handle.model(ids[:, :length], past_key_values=cache).logits[0]
            wanted, _ = outcome(PLAIN, ids[0].tolist(), PROMPTS[0], plan)
            torch.testing.assert_close(
                first.double(), wanted[:length].double(), rtol=2e-4, atol=2e-3
            )
            if not known:
                with pytest.raises(SteerfastError, match="goes on behind 6 tokens of a cache"):
                    handle.model(ids[:, length:], past_key_values=cache)
                continue
            rest = handle.model(ids[:, length:], past_key_values=cache).logits[0]
            torch.testing.assert_close(
                rest.double(), wanted[length:].double(), rtol=2e-4, atol=2e-3
            )


def test_a_sequence_in_a_prompt_whose_end_is_to_come_is_not_looked_for():
    """It may stand there again, and the last one counts."""
    prompt = [5, *MARK, 7, *MARK, 8]
    ids, lengths = torch.tensor([[*prompt, 20]]), {"prompt_lengths": [len(prompt)]}
    packed = {"input_ids": torch.cat([ids[:, :4], ids[:, :4]], 1)}
    packed["position_ids"] = torch.tensor([[0, 1, 2, 3] * 2])
    with torch.no_grad(), attach(llama()) as handle:
        with handle.use(AFTER_MARK, **lengths):
            whole = handle.model(ids).logits[0]
            with pytest.raises(
                SteerfastError, match=r"of a prompt of 7 tokens .* the first 4; give"
            ):
                handle.model(ids[:, :4])
        with (
            handle.use(AFTER_MARK, prompt_lengths=[4, 7]),
            pytest.raises(SteerfastError, match=r"of a prompt of 7 tokens .* the first 4; give"),
        ):
            handle.model(**packed)
        with handle.use(AFTER_MARK, prompts=[prompt]):
            first = handle.model(ids[:, :4], use_cache=True)
            rest = handle.model(ids[:, 4:], past_key_values=first.past_key_values)
    wanted, _ = outcome(PLAIN, ids[0].tolist(), prompt, AFTER_MARK)
    for found in (whole, torch.cat([first.logits, rest.logits], 1)[0]):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=2e-4, atol=2e-3)


PADDED = [[5, *MARK, 7], [11, 12, *MARK, 14, 15]]


@pytest.mark.parametrize(
    "select",
    ["after_prompt", "last_prompt_token", Positions(-2, "prompt_end"), AfterSequence(MARK)],
    ids=repr,
)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("given", [True, False], ids=["mask given", "inferred"])
def test_a_prompt_in_chunks_is_steered_as_the_whole(select, left, given):
    """A chunk's mask does not show yet where a prompt that is padded on the right ends; the whole one does."""
    ids = padded(PADDED, left)
    mask = {"attention_mask": (ids != 0).long()} if given else {}
    steered = []
    with torch.no_grad(), attach(llama()) as handle:
        for chunk in (None, 2, 3, 5):
            with handle.use(steer(vector(1), 2.0, select=select)):
                how = {**HOW, "max_new_tokens": 1, "prefill_chunk_size": chunk}
                out = handle.model.generate(ids, **mask, **how, **SCORES)
            steered.append(out.scores[0])
    for scores in steered[1:]:
        torch.testing.assert_close(scores, steered[0], rtol=1e-4, atol=1e-3)
    for row, prompt in enumerate(PADDED):
        if not left and len(prompt) < ids.shape[1]:
            continue  # generate reads its first token off a column of padding
        wanted, _ = outcome(PLAIN, prompt, prompt, steer(vector(1), 2.0, select=select))
        torch.testing.assert_close(
            steered[0][row].double(), wanted[-1].double(), rtol=2e-4, atol=2e-3
        )


def test_lengths_and_prompts_that_are_none_are_refused():
    plan = steer(vector(1), select="after_prompt")
    with attach(llama()) as handle:
        for lengths in ([1.5], [True], torch.tensor([2.7]), ["4"], [None]):
            with pytest.raises(TypeError, match="a prompt length is an integer"):
                handle.use(plan, prompt_lengths=lengths)
        with pytest.raises(ValueError, match=r"prompt lengths count tokens, got \[-1\]"):
            handle.use(plan, prompt_lengths=[-1])
        for prompts in ([["a"]], [[5.5]], [[True]]):
            with pytest.raises(TypeError, match="a token id of a prompt is an integer"):
                handle.use(plan, prompts=prompts)
        with pytest.raises(ValueError, match=r"prompt_lengths \[3\], but prompts of \[4\] tokens"):
            handle.use(plan, prompt_lengths=[3], prompts=[[5, 6, 7, 8]])
        for nothing in (5, object()):
            with pytest.raises(TypeError, match=r"takes a plan, None, or a list of them"):
                handle.use(nothing)
        with pytest.raises(TypeError, match="make a plan of it: steer"):
            handle.use(vector(1))
        with handle.use(plan, prompt_lengths=torch.tensor([3])), torch.no_grad():
            handle.model(torch.tensor([[5, 6, 7, 8]]))
            assert handle.report().steered == 2


WRONG_MASKS = {
    "rows for others": (torch.ones(3, 6), "has 3 rows, but there are 2 prompts"),
    "twice the rows": (torch.ones(4, 6), "has 4 rows, but there are 2 prompts"),
    "one row": (torch.ones(1, 6), "has 1 rows, but there are 2 prompts"),
    "no row": (torch.ones(0, 6), "has 0 rows, but there are 2 prompts"),
    "too few columns": (torch.ones(2, 3), "covers 3 tokens, but"),
}
PLANS = {
    "all": steer(vector(1), 2.0),
    "generated": steer(vector(1), 2.0, select="generated"),
    "a sequence": AFTER_MARK,
    "one a row": [steer(vector(1), 2.0), None],
}
TWO = padded([PROMPTS[0], [11, *MARK, 12, 13, 14]])


def ways(handle):
    model = handle.model
    return {
        "forward": lambda mask: model(TWO, attention_mask=mask),
        "generate": lambda mask: model.generate(TWO, attention_mask=mask, **HOW),
        "beams": lambda mask: model.generate(TWO, attention_mask=mask, num_beams=2, **HOW),
        "loop": lambda mask: handle.generating(TWO, mask).step(TWO.shape[1]),
    }


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", ways(type("", (), {"model": None})))
def test_a_mask_of_other_prompts_is_refused(plan, way):
    """In words, and before a layer runs; not by torch where two shapes meet."""
    with torch.no_grad(), attach(llama()) as handle, handle.use(PLANS[plan]):
        ran = []
        handle.model.model.layers[0].register_forward_pre_hook(lambda *given: ran.append(given))
        for mask, message in WRONG_MASKS.values():
            with pytest.raises(ValueError, match=f"attention_mask {message}"):
                ways(handle)[way](mask.long())
        if way != "forward":
            with pytest.raises(ValueError, match=r"attention_mask is \[6\]; wanted a tensor"):
                ways(handle)[way](torch.ones(6))
            with pytest.raises(ValueError, match="attention_mask is a list"):
                ways(handle)[way]([[1] * 6] * 2)
        if way in ("generate", "beams"):
            with pytest.raises(ValueError, match="covers 8 tokens, but the prompts have 6"):
                ways(handle)[way](torch.ones(2, 8))
        assert ran == []
