"""Where other libraries steer the wrong tokens, and say nothing: each case here, against the oracle."""

from __future__ import annotations

import pytest
import torch
from plan_oracle import outcome
from random_plans import LAYERS, MARK, PLAIN, D, llama, vector

from steerfast import AfterSequence, First, Positions, Schedule, SteerfastError, attach, steer

PROMPT = [5, 6, *MARK, 7]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
SCORES = {"output_scores": True, "return_dict_in_generate": True}
SELECTS = [
    "all", "prompt", "generated", "after_prompt", "last_prompt_token", Positions(1), Positions(0, 2),
    Positions(-1), Positions(-2, "prompt_end"), Positions("prompt_end", 3), First(1), AfterSequence((60,)),
]  # fmt: skip


def close(found, expected):
    assert torch.allclose(found, expected, atol=2e-4 * (1 + float(expected.abs().max())), rtol=0)


def scores_of(model, rows, **how):
    """(tokens, scores [B, n, V]) of prompts of one length."""
    out = model.generate(torch.tensor(rows), **{**GREEDY, **SCORES, **how})
    return out.sequences[:, len(rows[0]) :].tolist(), torch.stack(out.scores, 1)


def expected(prompt, plan, tokens):
    logits, _ = outcome(PLAIN, prompt + tokens, prompt, plan)
    return logits[len(prompt) - 1 : -1]


def test_steering_is_not_lost_on_tokens_decoded_from_the_cache():
    """A plan that acts on generated tokens only changes the second score on, each by all before it."""
    plan = steer(vector(1), 2.0, select="generated")
    with attach(llama()) as handle, handle.use(plan):
        tokens, scores = scores_of(handle.model, [PROMPT])
    close(scores[0], expected(PROMPT, plan, tokens[0]))
    plain = expected(PROMPT, None, tokens[0])
    close(scores[0, 0], plain[0])
    assert all(not torch.allclose(scores[0, n], plain[n], atol=1e-2) for n in (1, 2, 3))


def test_every_row_is_steered_by_its_own_plan_and_not_by_that_of_row_0():
    plans = [steer(vector(row), 2.0) for row in range(3)]
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 1]):
        chosen = [plans[row] for row in order]
        with attach(llama()) as handle, handle.use(chosen):
            tokens, scores = scores_of(handle.model, [PROMPT] * 3)
        for row, plan in enumerate(chosen):
            close(scores[row], expected(PROMPT, plan, tokens[row]))


@pytest.mark.parametrize("select", ["prompt", "generated"])
def test_a_chunk_of_one_token_is_prompt(select):
    """Five tokens in chunks of two or four: the last chunk has one, as a decoding step has."""
    plan = steer(vector(1), 2.0, select=select)
    for chunk in (1, 2, 4):
        with attach(llama()) as handle, handle.use(plan):
            tokens, scores = scores_of(handle.model, [PROMPT], prefill_chunk_size=chunk)
        close(scores[0], expected(PROMPT, plan, tokens[0]))


@pytest.mark.parametrize("select", SELECTS, ids=str)
def test_a_prompt_of_one_token(select):
    plan = steer(vector(1), 2.0, select=select)
    with attach(llama()) as handle, handle.use([plan, None]):
        tokens, scores = scores_of(handle.model, [[60], [60]])
    close(scores[0], expected([60], plan, tokens[0]))
    close(scores[1], expected([60], None, tokens[1]))


@pytest.mark.parametrize("before", [True, False])
def test_recorders_see_the_steered_stream(before):
    """Hooks that record a layer's output, put on before attach or after it, and output_hidden_states."""
    model, seen = llama(), {}

    def record():
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(lambda m, a, out, index=index: seen.update({index: out}))

    if before:
        record()
    plan = steer(vector(1), 2.0, layers=[1])
    with attach(model) as handle, handle.use(plan), torch.no_grad():
        if not before:
            record()
        states = model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    _, streams = outcome(PLAIN, PROMPT, PROMPT, plan)
    for layer in range(LAYERS):
        close(seen[layer][0], streams[layer + 1])
        close(states[layer][0], streams[layer])


def test_a_slot_used_again_has_nothing_of_its_last_plan():
    """Two slots, thirty plans with other coefficients, scales, operators and finishes."""
    with attach(llama(), slots=2) as handle:
        for turn in range(30):
            ways = {
                "scale": ["raw", "unit"][turn % 2],
                "finish": ["none", "preserve"][turn % 3 == 0],
            }
            ways = {"operator": "ablate"} if turn % 5 == 4 else ways
            plan = steer(vector(turn % 4), 1.0 + turn / 8, layers=[turn % LAYERS], **ways)
            with handle.use(plan), torch.no_grad():
                logits = handle.model(torch.tensor([PROMPT])).logits[0]
            close(logits, outcome(PLAIN, PROMPT, PROMPT, plan)[0])


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_a_layer_is_that_layer(layer, site):
    """hidden_states[l] is the input of layer l: resid_pre of l changes it, resid_post of l the next."""
    with attach(llama()) as handle, torch.no_grad():
        ids = torch.tensor([PROMPT])
        plain = handle.model(ids, output_hidden_states=True).hidden_states
        with handle.use(steer(vector(1), layers=[layer], site=site)):
            states = handle.model(ids, output_hidden_states=True).hidden_states
    first = layer if site == "resid_pre" else layer + 1
    for index in range(first):
        assert torch.equal(states[index], plain[index])
    if first < LAYERS:  # the last is recorded behind the final norm
        close(states[first][0] - plain[first][0], vector(1).at(layer).expand(len(PROMPT), D))


def test_a_sequence_that_is_not_there_is_an_error_before_anything_runs():
    plan = steer(vector(1), select=AfterSequence((1, 2, 3)))
    with attach(llama()) as handle:
        ran = []
        handle.model.model.layers[0].mlp.register_forward_hook(lambda *_: ran.append(1))
        with handle.use(plan):
            with pytest.raises(ValueError, match="does not contain"):
                handle.model.generate(torch.tensor([PROMPT]), **GREEDY)
            with pytest.raises(ValueError, match="does not contain"):
                handle.model(torch.tensor([PROMPT]))
        assert not ran
        handle.model(torch.tensor([PROMPT]))
        assert ran


def test_what_counts_from_the_prompts_end_wants_to_know_it():
    """All tokens of a forward alone are its prompt. Of one that goes on from a cache nobody knows the end."""
    ids = torch.tensor([[*PROMPT, 8, 9]])
    tokens = ids[0].tolist()
    with attach(llama()) as handle, torch.no_grad():
        cache = handle.model(ids, use_cache=True).past_key_values
        for select in ("last_prompt_token", "after_prompt", Positions(-2), Positions(-1, None)):
            plan = steer(vector(1), 2.0, select=select)
            with handle.use(plan):
                logits = handle.model(ids).logits[0]
                with pytest.raises(SteerfastError, match="prompt_lengths"):
                    handle.model(ids[:, :1], past_key_values=cache)
            close(logits, outcome(PLAIN, tokens, tokens, plan)[0])
            with handle.use(plan, prompt_lengths=[len(PROMPT)]):
                logits = handle.model(ids).logits[0]
            close(logits, outcome(PLAIN, tokens, PROMPT, plan)[0])


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_never_steered(left):
    """Its own stream is bitwise what it is without a plan, at the layer that is steered."""
    pad = [0, 0]
    row = pad + PROMPT[:3] if left else PROMPT[:3] + pad
    ids = torch.tensor([row, PROMPT])
    mask = (ids != 0).long()
    padding = mask[0] == 0
    given = {"attention_mask": mask, "output_hidden_states": True}
    with attach(llama()) as handle, torch.no_grad():
        plain = handle.model(ids, **given).hidden_states[1]
        with handle.use(steer(vector(1), 2.0, layers=[0])):
            states = handle.model(ids, **given).hidden_states[1]
            assert handle.report().steered == int(mask.sum())
    assert torch.equal(states[0][padding], plain[0][padding])
    assert not torch.equal(states[0][~padding], plain[0][~padding])


def test_every_forward_alone_finds_its_own_prompt():
    """A short one, a longer one, two at once, and one behind a generation, under one ``use``."""
    long = [*PROMPT, 8, 9, 10]
    for select in ("last_prompt_token", "prompt", AfterSequence(MARK), Positions(-2, "prompt_end")):
        plan = steer(vector(1), 2.0, select=select)
        with attach(llama()) as handle, torch.no_grad(), handle.use(plan):
            for batch in ([PROMPT], [long], [PROMPT, [1, 2, 3, *MARK]], [PROMPT]):
                logits = handle.model(torch.tensor(batch)).logits
                for row, tokens in enumerate(batch):
                    close(logits[row], outcome(PLAIN, tokens, tokens, plan)[0])
                handle.model.generate(torch.tensor([PROMPT[1:], PROMPT[:4]]), **GREEDY)


def test_a_generation_goes_on_behind_another_forward():
    """Between two of its steps somebody else's rows are routed: a stopping criterion that asks the model itself."""
    plan = steer(vector(1), 2.0, select="generated")
    with attach(llama()) as handle, handle.use(plan):
        model = handle.model

        def ask(ids, scores, **_):
            model.generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=2)
            return torch.zeros(len(ids), dtype=torch.bool)

        tokens, scores = scores_of(model, [PROMPT], stopping_criteria=[ask])
    close(scores[0], expected(PROMPT, plan, tokens[0]))


class Counted:
    """A router that counts how often it fills."""

    def __init__(self, router):
        self.router, self.fills = router, 0

    def __getattr__(self, name):
        return getattr(self.router, name)

    def fill(self, *args):
        self.fills += 1
        return self.router.fill(*args)


@pytest.mark.parametrize(
    "plan",
    [
        steer(vector(1), 3.0, select=Positions(0, 10)),
        steer(vector(1), 3.0, select=Positions("prompt_end", 11)),
        steer(vector(1), 3.0, schedule=Schedule(((0, 0.0), (3, 1.0)))),
        steer(vector(1), 3.0, select=Positions(2, 9), schedule=Schedule.decay(1)),
    ],
    ids=["a range", "from the prompt's end", "a schedule", "both"],
)
@pytest.mark.parametrize("back", [1, 3, 5])
def test_a_loop_that_is_rewound_reads_no_settled_rows(plan, back):
    """Step by step behind the last cut, then from an earlier position on: as one forward of the whole."""
    start, steps = len(PROMPT), 8
    ids = torch.tensor([PROMPT + list(range(20, 20 + steps))])
    with attach(llama()) as handle, torch.no_grad():
        with handle.use(plan, prompt_lengths=[start]):
            whole = handle.model(ids).logits[0]
        with handle.use(plan), handle.generating(ids[:, :start]) as loop:
            loop.step(start)
            cache = handle.model(ids[:, :start], use_cache=True).past_key_values

            def read(t, seen=None):
                loop.step(1, seen)
                step = ids[:, t : t + 1]
                return handle.model(step, past_key_values=cache, use_cache=True).logits[0, 0]

            first = [read(t) for t in range(start, start + steps)]
            cache.crop(-back)
            again = [read(t, seen=t) for t in range(start + steps - back, start + steps)]
    torch.testing.assert_close(torch.stack(first), whole[start:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(again), whole[-back:], rtol=1e-4, atol=1e-4)


def test_a_route_that_has_settled_is_left_as_it_is_until_something_changes():
    """What a decode step does not fill again must be what it would have filled."""
    start = len(PROMPT)
    ends = steer(vector(1), 2.0, select=Positions(0, start + 3))
    whole, other = steer(vector(2), 1.5), steer(vector(3), -2.0)
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    with (
        attach(llama()) as handle,
        handle.use([ends, whole]) as use,
        handle.generating(ids) as loop,
    ):
        routing = handle._shared.state.routing
        routing.router = Counted(routing.router)

        def slots():
            """The slots of the next token."""
            loop.step(1)
            handle.model(ids[:, :1])
            return routing.rows.slot.tolist()

        loop.step(start)
        handle.model(ids)
        first, second = slots()
        assert (first >= 0, second >= 0) == (True, True)
        assert slots() == slots() == [first, second]
        assert routing.router.fills == 3
        assert slots() == slots() == slots() == [-1, second]  # the first plan has ended
        assert routing.router.fills == 4
        handle.model(torch.tensor([[5, 6], [7, 8]]))  # somebody else's rows, two for each
        assert slots() == [-1, second]
        use.change([other, whole])
        changed = slots()
        assert changed[0] >= 0
        assert changed[1] == second
        with handle.generating(ids) as beside:  # another generation of as many rows
            beside.step(start)
            handle.model(ids)
            beside.step(1)
            handle.model(ids[:, :1])
        fills = routing.router.fills
        assert slots() == changed
        assert routing.router.fills == fills + 1
        loop.step(2)  # more rows than before
        handle.model(ids[:, :2])
        assert routing.rows.slot.tolist() == [changed[0]] * 2 + [second] * 2
