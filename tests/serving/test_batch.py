"""``generate_batch``: answers as each request gets alone, in order, whatever the table has room for."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from batching_config import batching_config
from one_by_one import VOCABULARY, alone, prompt
from plain_streams import TEMPLATE, byte_ids, forwards, said
from tiny_llama import byte_tokenizer, tiny_llama

from steerfast import AfterSequence, Condition, SteeringVector, Test, attach, steer
from steerfast.errors import SteerfastError, TableFullError
from steerfast.models.continuous import salted
from steerfast.serving import Request, generate_batch

D, LAYERS = 32, 3
SMALL = {
    "page": 16,
    "num_blocks": 200,
    "max_batch_tokens": 64,
}  # prompts of 300 come in chunks
QUIET = {"progress": False, "config": batching_config(**SMALL)}


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden=D, layers=LAYERS, vocabulary=VOCABULARY, heads=2, spread=0.3, seed=3)


def vector(seed):
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {at: torch.randn(D, generator=rng) for at in range(LAYERS)})


def test_more_plans_than_slots_wait_their_turn(model):
    """Eleven plans through three slots: every answer is the one that its request gets alone, and all seats return."""
    requests = [
        Request(prompt(n, 2 + n % 4), steer(vector(n), 3.0), {"max_new_tokens": 2 + n % 5})
        for n in range(11)
    ]
    requests.insert(4, Request(prompt(50, 3), None, {"max_new_tokens": 4}))
    with attach(model, slots=3) as handle:
        answers = generate_batch(handle, requests, **QUIET)
        assert handle.table.slots_in_use == 0
    assert [one.text for one in answers] == [None] * len(requests)
    for request, answer in zip(requests, answers, strict=True):
        count = request.sampling["max_new_tokens"]
        assert answer.tokens == alone(model, request.prompt, request.plan, count)
    assert answers[0].tokens != alone(model, requests[0].prompt, None, 2)


def test_a_plan_that_never_fits_is_an_error(model, monkeypatch):
    """Two phases do not go through one slot, however long they wait."""
    from steerfast import Plan, Term

    two = Plan((Term(vector(1), select="prompt"), Term(vector(2), select="generated")))
    with attach(model, slots=1) as handle:
        monkeypatch.setattr("steerfast.serving.batch._run", None)  # before anything runs
        fits = (prompt(1, 3), None, {"max_new_tokens": 2})
        with pytest.raises(TableFullError, match=r"request 1: .*needs 2 slots.*there are 1 in all"):
            generate_batch(handle, [fits, (prompt(1, 3), two, {"max_new_tokens": 2})], **QUIET)
        handle.use(None).close()  # the handle is whole


def test_text_sampling_and_defaults(tiny):
    """Text in and out; requests with other sampling run in engines of their own, results stay in order."""
    model, tokenizer, _ = tiny
    joy = SteeringVector("joy", {1: torch.ones(64)})
    requests = [
        ("My day", steer(joy, 2.0), {"max_new_tokens": 3}),
        ("My day", None, {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5, "seed": 7}),
        ("All of us", steer(joy, -2.0), {"max_new_tokens": 4}),
    ]
    answers = generate_batch(model, requests, tokenizer=tokenizer, **QUIET)
    assert "forward" not in vars(model.model.layers[0])  # attached for the call only
    for at in (0, 2):
        text, plan, sampling = requests[at]
        ids = tokenizer(text)["input_ids"]
        expected = alone(model, ids, plan, sampling["max_new_tokens"])
        assert answers[at].tokens == expected
        assert answers[at].text == tokenizer.decode(expected)
    again = generate_batch(model, requests, tokenizer=tokenizer, **QUIET)
    assert again[1].tokens == answers[1].tokens  # a seed is a seed
    assert generate_batch(model, [], **QUIET) == []


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (("text",), ValueError, "request 1 is text"),
        (([],), ValueError, "request 1 has an empty prompt"),
        (([1], "joy"), TypeError, "plan of request 1 is a str"),
        (([1], None, {"top_q": 1}), ValueError, "request 1 asks for top_q; known: max_new_tokens"),
        (
            ([1], steer(SteeringVector("w", {0: torch.ones(8)}))),
            ValueError,
            "request 1: .*hidden size",
        ),
        (
            ([1], steer(SteeringVector("w", {9: torch.ones(D)}))),
            ValueError,
            "request 1: .*layer",
        ),
    ],
)
def test_bad_requests_are_named_before_anything_runs(model, request_, error, message):
    with pytest.raises(error, match=message):
        generate_batch(model, [([1, 2], None, {"max_new_tokens": 1}), request_], **QUIET)
    assert "forward" not in vars(model.model.layers[0])


BAD = [
    (None, TypeError, "sampling of request 1 is a NoneType"),
    ({"max_new_tokens": True}, TypeError, "max_new_tokens of request 1 is an integer"),
    ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens of request 1 is an integer"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens of request 1 is a whole number from 1"),
    ({"max_new_tokens": 2**31}, ValueError, "request 1 has max_new_tokens .* has positions for"),
    ({"eos_token_id": "</s>"}, TypeError, "eos_token_id of request 1 is an integer"),
    ({"eos_token_id": [1, None]}, TypeError, "eos_token_id of request 1 is an integer"),
    ({"eos_token_id": VOCABULARY}, ValueError, f"eos_token_id .* 0 to {VOCABULARY - 1}"),
    ({"do_sample": 1}, TypeError, "do_sample of request 1 is true or false"),
    ({"do_sample": True, "temperature": 0}, ValueError, "request 1 samples at temperature 0"),
    ({"temperature": float("nan")}, ValueError, "temperature of request 1 is nan"),
    ({"temperature": -1}, ValueError, "temperature of request 1"),
    ({"top_k": 1.5}, TypeError, "top_k of request 1"),
    ({"top_p": 1.1}, ValueError, "top_p of request 1"),
    ({"seed": "7"}, TypeError, "seed of request 1"),
    ({"seed": [7]}, TypeError, "seed of request 1"),
    ({"seed": 2**70}, ValueError, "seed of request 1"),
    ({7: 7}, ValueError, "request 1 asks for 7"),
]


@pytest.mark.parametrize(("sampling", "error", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_sampling_is_refused_before_anything_runs(model, sampling, error, message, monkeypatch):
    monkeypatch.setattr("steerfast.serving.batch._run", None)
    with pytest.raises(error, match=message):
        generate_batch(model, [([1, 2], None, {}), ([1, 2], None, sampling)], **QUIET)


def test_sampling_of_other_libraries_is_plain_in_the_end(model):
    """numpy's numbers and lists of end tokens do what Python's do; what is None was not said."""
    ids = prompt(3, 4)
    free = alone(model, ids, None, 6)
    ending = {"eos_token_id": np.array([free[2], 0]), "max_new_tokens": np.int64(6), "seed": None}
    plain = {"eos_token_id": [free[2], 0], "max_new_tokens": 6}
    answers = generate_batch(model, [(ids, None, ending), (ids, None, plain)], **QUIET)
    assert answers[0].tokens == answers[1].tokens == free[: free.index(free[2]) + 1]


SHORT = {"max_new_tokens": 4}


@pytest.mark.parametrize("given", ["text", "a generator of text", "requests and text", "ids"])
def test_prompts_alone_are_requests(tiny, given, monkeypatch):
    """Each is answered as it is alone, to the default length and unsteered."""
    monkeypatch.setattr("steerfast.serving.batch.MAX_NEW_TOKENS", 4)
    model, tokenizer, _ = tiny
    texts = ["My day was", "abc", "Then"]  # of three letters: no prompt, plan and sampling
    ids = [tokenizer(text)["input_ids"] for text in texts]
    requests = {
        "text": texts,
        "a generator of text": (text for text in texts),
        "requests and text": [Request(texts[0]), texts[1], (texts[2], None, SHORT)],
        "ids": [ids[0], tuple(ids[1]), torch.tensor(ids[2])],
    }[given]
    answers = generate_batch(model, requests, tokenizer=tokenizer, **QUIET)
    assert [one.tokens for one in answers] == [alone(model, one, None, 4) for one in ids]
    assert [one.text for one in answers] == [tokenizer.decode(one.tokens) for one in answers]


@pytest.mark.parametrize("bos_in_front", [True, False])
def test_messages_are_prompts(tiny, bos_in_front):
    """Through the template, with one BOS and the beginning of an answer; a plan acts on them as on their ids."""
    model, _, _ = tiny
    chat = byte_tokenizer(bos_in_front=bos_in_front)
    chat.chat_template = TEMPLATE
    plan = steer(SteeringVector("joy", {1: torch.ones(64)}), 2.0, select="after_prompt")
    asked = [said("system", "Be kind."), said("user", "How was your day?")]
    begun = [*asked, said("assistant", "It was")]
    requests = [
        asked,
        (asked, plan, SHORT),
        Request(tuple(begun), plan, SHORT),
        ("<s>Hi", plan, SHORT),
    ]
    requests[0] = (requests[0], None, SHORT)
    answers = generate_batch(model, requests, tokenizer=chat, **QUIET)
    read = "<s>[system] Be kind.\n[user] How was your day?\n[assistant] "
    for answer, text, steered in zip(
        answers, (read, read, f"{read}It was", "<s>Hi"), (None, plan, plan, plan), strict=True
    ):
        assert answer.tokens == alone(model, byte_ids(text), steered, 4)
    assert answers[0].tokens != answers[1].tokens
    (bare,) = generate_batch(model, [asked], tokenizer=chat, **QUIET)
    assert bare.tokens[:4] == answers[0].tokens


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        (
            "My day",
            TypeError,
            r"takes an iterable of requests, got str; one request is \[request\]",
        ),
        (Request("My day"), TypeError, "got Request"),
        ({"prompt": "a"}, TypeError, "got dict"),
        (5, TypeError, "got int"),
        (io.StringIO("a\nb\n"), TypeError, "got StringIO"),
        ([said("user", "Hi")], TypeError, "request 0 is dict .*one request of messages is a list"),
        (["a", {"prompt": "b"}], TypeError, r"request 1 is dict .*Request\(prompt, plan"),
        (["a", ()], TypeError, "request 1 is a tuple of 0; wanted"),
        (["a", ("b", None, {}, 5)], TypeError, "request 1 is a tuple of 4"),
        (["a", ("b", None, 5)], TypeError, "sampling of request 1 is a int"),
        (["a", None], ValueError, "a token id of request 1 is an integer, got None"),
        (["a", ""], ValueError, "request 1 has an empty prompt"),
        (["a", [said("user", "Hi"), 5]], ValueError, "request 1: the prompt is text or a list of"),
        (["a", [{"content": "Hi"}]], ValueError, "request 1: a message of the prompt has no role"),
        (
            ["a", [said("user", "Hi")]],
            ValueError,
            "request 1: .*the tokenizer has no chat template",
        ),
        (["a", torch.tensor([[1, 2]])], ValueError, "a token id of request 1 is an integer"),
    ],
    ids=range(16),
)
def test_what_is_no_request_is_refused_before_anything_runs(tiny, requests, error, message):
    model, tokenizer, _ = tiny
    ran = forwards(model)
    with pytest.raises(error, match=message):
        generate_batch(model, requests, tokenizer=tokenizer, **QUIET)
    assert ran == []
    assert "forward" not in vars(model.model.layers[0])


def test_messages_without_a_tokenizer_are_refused(model):
    with pytest.raises(ValueError, match="request 0 is messages; give tokenizer="):
        generate_batch(model, [[said("user", "Hi")]], **QUIET)


def test_a_tokenizer_that_only_reads_gives_no_text(tiny):
    model, tokenizer, _ = tiny
    (answer,) = generate_batch(
        model, [("Hi", None, SHORT)], tokenizer=lambda text: tokenizer(text), **QUIET
    )
    assert answer.text is None
    assert answer.tokens == alone(model, tokenizer("Hi")["input_ids"], None, 4)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_shared_prompt_shares_blocks_only_within_a_plan(model, keyed, monkeypatch):
    """300 tokens in common: no answer takes another plan's keys and values. Blocks keyed by tokens alone would."""
    if not keyed:
        monkeypatch.setattr("steerfast.models.continuous.salted", lambda ids, plan: ids)
    common = prompt(7, 300)
    plans = [steer(vector(1), 2.0), None, steer(vector(2), 2.0), steer(vector(1), 2.0), None]
    requests = [([*common, n + 1], plan, {"max_new_tokens": 4}) for n, plan in enumerate(plans)]
    with attach(model) as handle:
        answers = [one.tokens for one in generate_batch(handle, requests, **QUIET)]
    expected = [alone(model, ids, plan, 4) for ids, plan, _ in requests]
    right = [one == two for one, two in zip(answers, expected, strict=True)]
    assert right[0]
    assert all(right) == keyed


def test_blocks_are_keyed_by_the_plan():
    ids = list(range(40))
    one, two = steer(vector(1)), steer(vector(1), 2.0)
    assert salted(ids, None) is ids
    assert salted(ids, one) == salted(ids, steer(vector(1)))
    assert salted(ids, one)[:8] != salted(ids, two)[:8]
    assert salted(ids, one)[:8] != ids[:8]
    assert all(0 <= token < 2**31 for token in salted(ids, one))
    assert [token % 2**20 for token in salted(ids, one)] == ids
    with pytest.raises(ValueError, match="allow_block_sharing=False"):
        salted([1 << 20], one)


def test_the_manager_takes_plans(model):
    """``add_request(plan=)``, and ``handle.use`` around transformers' own ``generate_batch``."""
    from transformers import GenerationConfig

    ids = [prompt(n, 4) for n in range(3)]
    plans = [steer(vector(1), 3.0), None, steer(vector(2), -3.0)]
    settings = GenerationConfig(
        max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    expected = [alone(model, *one, 4) for one in zip(ids, plans, strict=True)]
    with attach(model) as handle:
        with handle.use(plans):
            got = model.generate_batch(
                ids, settings, continuous_batching_config=QUIET["config"], progress_bar=False
            )
        by_name = sorted(got.items(), key=lambda item: int(item[0].split("_")[-1]))
        assert [list(one.generated_tokens) for _, one in by_name] == expected
        with handle.use(plans), pytest.raises(ValueError, match=r"3 plans, but .* 2 prompts"):
            model.generate_batch(ids[:2], generation_config=settings)
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=QUIET["config"]
        ) as manager:
            names = [
                manager.add_request(one, plan=plan) for one, plan in zip(ids, plans, strict=True)
            ]
            with handle.use(plans), pytest.raises(SteerfastError, match="add_request"):
                manager.add_request(ids[0])
            got = {}
            while len(got) < 3:
                result = manager.get_result(timeout=10)
                if result is not None and result.is_finished():
                    got[result.request_id] = list(result.generated_tokens)
        assert [got[name] for name in names] == expected
        assert handle.table.slots_in_use == 0
    assert threading.active_count() < 20


def test_conditions_decide_in_packed_batches(model):
    """Five prompts, one threshold between them: decided as each is alone."""
    key = vector(9)
    ids = [prompt(n, 3 + n) for n in range(5)]
    with torch.no_grad():
        values = [
            model(torch.tensor([one]), output_hidden_states=True).hidden_states[1][0, -1]
            @ key.at(0)
            for one in ids
        ]
    values = torch.stack(values) / key.at(0).norm()
    between = values.sort().values[1:3].mean().item()
    condition = Condition(Test("projection", key, 0, threshold=between))
    plan = steer(vector(1), 3.0, condition=condition)
    with attach(model) as handle:
        asked = [(one, plan, {"max_new_tokens": 4}) for one in ids]
        answers = [one.tokens for one in generate_batch(handle, asked, **QUIET)]
    assert answers == [alone(model, one, plan, 4) for one in ids]
    plain = [alone(model, one, None, 4) for one in ids]
    met = (values > between).tolist()
    assert [one != two for one, two in zip(answers, plain, strict=True)] == met


@pytest.mark.parametrize(
    ("prompt", "plan", "message"),
    [
        ([5.9], None, r"a token id of request 1 is an integer, got 5\.9"),
        ([True], None, "a token id of request 1 is an integer, got True"),
        (["a"], None, "a token id of request 1 is an integer, got 'a'"),
        ([10**30], None, "request 1 has token ids"),
        ([-1], None, "request 1 has token ids -1 to -1; this model knows 0 to"),
        ([5, 6], "sequence", "request 1: a plan acts after the token sequence"),
    ],
    ids=range(6),
)
def test_a_bad_request_is_named_before_anything_runs(model, prompt, plan, message):
    ran = []
    hook = model.model.embed_tokens.register_forward_hook(lambda *given: ran.append(given))
    steering = SteeringVector("v", {0: torch.ones(model.config.hidden_size)})
    given = None if plan is None else steer(steering, select=AfterSequence((9,)))
    try:
        with pytest.raises(ValueError, match=message):
            generate_batch(model, [([5, 6],), (prompt, given)], progress=False)
    finally:
        hook.remove()
    assert not ran
