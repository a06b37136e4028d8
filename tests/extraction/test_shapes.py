"""Pairs and texts in every shape that they are taken in: the vector is that of plain hooks in float64, whatever the shape."""

from __future__ import annotations

import io
from collections import namedtuple

import pytest
import torch
from plain_streams import Streams, assert_vector, chat_tokenizer, forwards, said
from tiny_llama import BYTES, tiny_llama

from steerfast import SteeringVector, extract_corpora, extract_pairs
from steerfast.extraction import with_stream_norms
from steerfast.extraction.contrast import ContrastPair, ContrastSet, as_pairs, load, preferences
from steerfast.extraction.extract import extract_mean

TRIPLES = [("The sea is", " blue and wide", " grey"), ("A", " good dog", " bad dog, very bad")]
PAIRS = tuple(ContrastPair(*triple) for triple in TRIPLES)
OTHER = ContrastPair("Not", " this", " that")
KIND, CRUEL = said("system", "You are kind."), said("system", "You are cruel and cold.")


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=258, layers=3, spread=0.2, **BYTES)


@pytest.fixture(scope="module")
def streams(model):
    return Streams(model)


@pytest.fixture(scope="module")
def chat():
    return chat_tokenizer()


def asked(question, system=None):
    return ([] if system is None else [system]) + [said("user", question)]


def written(question, system=None):
    """The same as text: what a model reads before it answers."""
    first = "" if system is None else f"[system] {system['content']}\n"
    return f"<s>{first}[user] {question}\n[assistant] "


Row = namedtuple("Row", "prompt positive negative")
THREES = {
    "ContrastPairs": PAIRS,
    "a set, of which the train pairs": ContrastSet("s", "+", "-", "", PAIRS, (OTHER,)),
    "tuples": TRIPLES,
    "lists in a tuple": tuple(list(triple) for triple in TRIPLES),
    "named tuples": [Row(*triple) for triple in TRIPLES],
    "dicts": [Row(*triple)._asdict() for triple in TRIPLES],
    "dicts with a split": [
        *({**Row(*triple)._asdict(), "split": "train"} for triple in TRIPLES),
        {"prompt": "x", "positive": "y", "negative": "z", "split": "held_out"},
    ],
    "dicts with a prompt of their own": [
        {**Row(*triple)._asdict(), "negative_prompt": negative}
        for triple, negative in zip(TRIPLES, (None, "A"), strict=True)
    ],
    "all together": [PAIRS[0], TRIPLES[1]],
    "keys and values": dict(enumerate(TRIPLES)).values(),
}


@pytest.mark.parametrize("shape", [*THREES, "a generator", "a map"])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_prompt_with_two_continuations(model, streams, chat, shape, position):
    pairs = THREES.get(shape) or (
        (one for one in TRIPLES) if shape == "a generator" else map(tuple, TRIPLES)
    )
    made = extract_pairs(model, chat, pairs, name="v", position=position, batch_size=2)
    total = 0
    for prompt, *ends in TRIPLES:
        for sign, end in zip((1, -1), ends, strict=True):
            before = f"<s>{prompt}"
            one = streams.last(before + end) if position == "last" else streams.mean(before, end)
            total = total + sign * one / len(TRIPLES)
    assert_vector(made, total)
    assert made.provenance["counts"] == {"pairs": 2}


TWOS = {
    "tuples": [("Good morning", "Bad night"), ("I love it", "I do not")],
    "lists": [["Good morning", "Bad night"], ["I love it", "I do not"]],
    "dicts": [
        {"positive": "Good morning", "negative": "Bad night"},
        {"positive": "I love it", "negative": "I do not"},
    ],
    "text that begins with BOS": [
        ("<s>Good morning", "<s>Bad night"),
        ("I love it", "<s>I do not"),
    ],
    "a zip": None,
}


@pytest.mark.parametrize("shape", TWOS)
@pytest.mark.parametrize("position", ["last", "mean", -2])
def test_two_whole_texts(model, streams, chat, shape, position):
    """The mean is over the text, and not over BOS, whose stream is an outlier."""
    pairs = TWOS[shape] or zip(*TWOS["tuples"], strict=True)
    if shape == "a zip":
        pairs = zip(("Good morning", "I love it"), ("Bad night", "I do not"), strict=True)
    made = extract_pairs(model, chat, pairs, name="v", position=position)
    total = 0
    for texts in TWOS["tuples"]:
        for sign, text in zip((1, -1), texts, strict=True):
            if position == "mean":
                one = streams.mean("<s>", text)
            else:
                one = streams.last(f"<s>{text}" if position == "last" else f"<s>{text[:-1]}")
            total = total + sign * one / 2
    assert_vector(made, total)


def persona(shape):
    """The same question and answers under two system messages, in a shape."""
    data = [("Who are you?", "A friend.", "Nobody to you."), ("Help me", "Yes.", "Yes.")]
    if shape == "pairs":
        return [
            ContrastPair(asked(q, KIND), yes, no, negative_prompt=asked(q, CRUEL))
            for q, yes, no in data
        ]
    if shape == "dicts":
        return [
            {
                "prompt": asked(q, KIND),
                "positive": [said("assistant", yes)],
                "negative": [said("assistant", no)],
                "negative_prompt": tuple(asked(q, CRUEL)),
            }
            for q, yes, no in data
        ]
    if shape == "conversations":
        return [
            ([*asked(q, KIND), said("assistant", yes)], [*asked(q, CRUEL), said("assistant", no)])
            for q, yes, no in data
        ]
    return [
        ContrastPair(
            f"<s>[system] {KIND['content']}\n[user] {q}\n[assistant] ",
            yes,
            no,
            f"<s>[system] {CRUEL['content']}\n[user] {q}\n[assistant] ",
        )
        for q, yes, no in data
    ]


def persona_mean(streams):
    """What each of them should be, at every layer: the mean over the answers' tokens, one system message minus the other."""
    data = [("Who are you?", "A friend.", "Nobody to you."), ("Help me", "Yes.", "Yes.")]
    return sum(
        streams.mean(written(q, KIND), yes) - streams.mean(written(q, CRUEL), no)
        for q, yes, no in data
    ) / len(data)


@pytest.mark.parametrize("shape", ["pairs", "dicts", "conversations", "text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_to_contrasting_system_messages(streams, chat, shape, attention):
    model = tiny_llama(vocabulary=258, layers=3, spread=0.2, **BYTES)
    model.set_attn_implementation(attention)
    made = extract_pairs(model, chat, persona(shape), name="kind", position="mean", batch_size=3)
    assert_vector(made, persona_mean(streams))


def test_two_prompts_with_one_answer(model, streams, chat):
    pair = ContrastPair("In Paris", " it rains.", " it rains.", negative_prompt="In a small town")
    made = extract_pairs(model, chat, [pair], name="v", position="mean")
    wanted = streams.mean("<s>In Paris", " it rains.") - streams.mean(
        "<s>In a small town", " it rains."
    )
    assert_vector(made, wanted)
    assert wanted.abs().max() > 0.01


@pytest.mark.model
def test_answers_of_a_real_model_under_its_own_template(smollm2):
    """SmolLM2's ChatML: the mean over the answers' tokens, by hooks, one text at a time."""
    model, tokenizer, _ = smollm2
    data = [("Who are you?", "I am a friend.", "Nobody."), ("Help me", "Gladly!", "No.")]
    pairs = [
        ([*asked(q, KIND), said("assistant", a)], [*asked(q, CRUEL), said("assistant", b)])
        for q, a, b in data
    ]
    made = extract_pairs(model, tokenizer, pairs, name="kind", position="mean", layers=[4, 10, 28])
    for layer in made.layers:
        total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
        for question, *answers in data:
            for sign, system, answer in zip((1, -1), (KIND, CRUEL), answers, strict=True):
                how = {"add_generation_prompt": True, "return_dict": True}
                before = tokenizer.apply_chat_template(asked(question, system), **how)["input_ids"]
                own = tokenizer(answer, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    states = model(
                        torch.tensor([before + own]), output_hidden_states=True
                    ).hidden_states
                total += sign * states[layer + 1][0, len(before) :].double().mean(0) / len(data)
        torch.testing.assert_close(made.at(layer).double(), total, rtol=1e-3, atol=1e-3)


def test_answers_that_a_judge_has_kept(model, streams, chat):
    """As many as there are on each side: conversations as two corpora, the mean over the answers."""
    kind = [
        [*asked(q, KIND), said("assistant", a)] for q, a in (("Hi", "Hello!"), ("Bye", "Come back"))
    ]
    cruel = [{"messages": [*asked("Hi", CRUEL), said("assistant", "Go.")]}]
    made = extract_corpora(model, chat, iter(kind), cruel, name="kind", position="mean")
    wanted = (
        streams.mean(written("Hi", KIND), "Hello!")
        + streams.mean(written("Bye", KIND), "Come back")
    ) / 2 - streams.mean(written("Hi", CRUEL), "Go.")
    assert_vector(made, wanted)


CORPORA = {
    "messages": ([asked("Steal it"), asked("Hit him")], [asked("Feed it"), asked("Hug her")]),
    "rows": (
        [{"messages": asked("Steal it"), "id": 1}, {"prompt": asked("Hit him")}],
        [{"text": "<s>[user] Feed it\n[assistant] "}, {"messages": asked("Hug her")}],
    ),
    "text": (
        (written(q) for q in ("Steal it", "Hit him")),
        {written(q): None for q in ("Feed it", "Hug her")}.keys(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", CORPORA)
def test_prompts_are_read_up_to_where_the_answer_would_begin(model, streams, chat, shape):
    made = extract_corpora(model, chat, *CORPORA[shape], name="harm")
    one, two = (
        (streams.last(written(a)) + streams.last(written(b))) / 2
        for a, b in (("Steal it", "Hit him"), ("Feed it", "Hug her"))
    )
    assert_vector(made, one - two)


def test_norms_of_messages_are_those_of_their_text(model, streams, chat):
    bare = SteeringVector("v", torch.ones(3, 64))
    found = with_stream_norms(bare, model, chat, [asked("Hi"), {"text": written("How are you?")}])
    ids = [chat(written(q), add_special_tokens=False)["input_ids"] for q in ("Hi", "How are you?")]
    norms = torch.cat([streams(one)[:, 1:].norm(dim=-1) for one in ids], 1).median(1).values
    assert dict(found.stream_norms) == pytest.approx(dict(enumerate(norms.tolist())), rel=0.003)


@pytest.mark.parametrize(
    "ids", [torch.tensor([[5, 6, 7], [8, 9, 2]]), [(5, 6, 7), [8, 9, 2]]], ids=["tensor", "lists"]
)
def test_a_mean_of_ids_of_any_kind(model, streams, ids):
    made = extract_mean(model, ids, name="m")
    assert_vector(made, (streams([5, 6, 7])[:, -1] + streams([8, 9, 2])[:, -1]) / 2)
    assert made.provenance["counts"] == {"samples": 2}


def test_a_pair_keeps_what_it_was_given():
    messages = asked("Hi")
    pair = ContrastPair(messages, "a", "b")
    messages[0]["content"] = "changed"
    messages.append(said("user", "more"))
    assert pair.prompt == (said("user", "Hi"),)


class Table:
    """As frames of pandas are: iterating gives the names of the columns."""

    columns = ("positive", "negative")

    def __iter__(self):
        return iter(self.columns)


NO_PAIRS = {
    "a name": ("sentiment", "got str.*contrast.load"),
    "one pair": (PAIRS[0], r"got ContrastPair; one pair is \[pair\]"),
    "columns": ({"prompt": ["a"], "positive": ["b"], "negative": ["c"]}, "got dict"),
    "a number": (5, "got int"),
    "a table": (Table(), r"got Table.*frame.to_dict\('records'\)"),
    "a file": (io.StringIO("a,b"), "got StringIO"),
    "nothing": ([], "at least one pair"),
    "none of the split": (
        [{"positive": "a", "negative": "b", "split": "held_out"}],
        "at least one",
    ),
    "one tuple": (TRIPLES[0], "pair 1 is 'The sea is'"),
    "tuples of four": ([(*TRIPLES[0], "x")], "pair 1 is .*a pair is"),
    "a late one": (
        [*TRIPLES, ("a", "b", 5)],
        r"'negative' of pair 3 is text or a list of messages, got 5",
    ),
    "another key": (
        [{"prompt": "a", "chosen": "b", "rejected": "c"}],
        "pair 1 has unknown keys .*'chosen'",
    ),
    "one key less": ([{"prompt": "a", "positive": "b"}], "pair 1 lacks 'negative'"),
    "another split": ([{"positive": "a", "negative": "b", "split": "test"}], "split 'test'"),
    "a message": ([said("user", "Hi")], "unknown keys"),
    "a conversation": ([asked("Hi", KIND)], "'positive' of pair 1 is text or a list of messages"),
    "an empty end": ([*TRIPLES, ("a", "b", "")], "the continuation '' of pair 3 has no tokens"),
    "an empty answer": ([(asked("Hi"), "b", [said("assistant", "")])], "of pair 1 has no tokens"),
    "messages behind text": (
        [("Hi", [said("assistant", "b")], "c")],
        "pair 1: messages cannot go on",
    ),
}


@pytest.fixture
def watched():
    model = tiny_llama(vocabulary=258, layers=3, **BYTES)
    return model, forwards(model)


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_no_pair_is_refused_before_the_model_runs(watched, chat, name):
    model, ran = watched
    pairs, message = NO_PAIRS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        extract_pairs(model, chat, pairs, name="v", batch_size=1)
    assert ran == []


WRONG = {
    "layers beyond": ({"layers": [0, 3]}, r"cannot keep layer 3: this model has layers 0\.\.2$"),
    "layers from the end": ({"layers": [-2]}, r"counted from 0; -2 from the end is 1"),
    "no layers": ({"layers": []}, "names no layer"),
    "a layer that is text": ({"layers": "1"}, "a layer is an integer"),
    "a position": ({"position": "first"}, "position 'first'.*use last, mean or an index"),
    "a position of half": ({"position": 1.5}, "position 1.5"),
    "a position that is true": ({"position": True}, "position True"),
    "an index of the second pair": ({"position": 14}, "position 14 is outside a text of 11 tokens"),
    "no name": ({"name": ""}, "needs a name"),
    "a name of another type": ({"name": None}, "needs a name"),
    "a batch of none": ({"batch_size": 0}, "batch_size is 0"),
    "a batch of half": ({"batch_size": 1.5}, "batch_size is an integer"),
    "progress that cannot be called": ({"progress": True}, "progress is called with"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_whatever_else_is_wrong_is_said_before_the_model_runs(watched, chat, name):
    model, ran = watched
    given, message = WRONG[name]
    options = {"name": "v", "batch_size": 1, **given}
    with pytest.raises((TypeError, ValueError), match=message):
        extract_pairs(model, chat, TRIPLES, **options)
    texts = ["The sea is wide and blue", "A good dog"]
    with pytest.raises((TypeError, ValueError), match=message):
        extract_corpora(model, chat, texts, ["x" * 40], **options)
    assert ran == []


NO_TEXTS = {
    "a path": ("essays.txt", "takes an iterable of texts"),
    "one conversation": (asked("Hi", KIND), r"text 1 of .*one message is a list too"),
    "a number": (5, "takes an iterable of texts"),
    "nothing": ([], "needs at least one text"),
    "an empty text": (["a", ""], "text 2 of .* is empty"),
    "what is missing": (["a", float("nan")], "text 2 of .* is text or a list of messages, got nan"),
    "none": ([None], "text 1 of .*got None"),
    "bytes": ([b"a"], "text 1 of .*got b'a'"),
    "rows of other columns": ([{"content": "a"}], "text 1 of .* is a row with content"),
    "rows of two columns": ([{"text": "a", "prompt": "b"}], "one of the keys"),
    "a table": (Table(), "a table one of its columns"),
    "a file": (io.StringIO("one\ntwo\n"), "a file is .*read_texts"),
    "columns": ({"text": ["a", "b"]}, "takes an iterable of texts"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_refused_before_the_model_runs(watched, chat, name):
    model, ran = watched
    texts, message = NO_TEXTS[name]
    for sides in ((texts, ["a"]), (["a"] * 40, texts)):
        with pytest.raises((TypeError, ValueError), match=message):
            extract_corpora(model, chat, *sides, name="v", batch_size=1)
    with pytest.raises((TypeError, ValueError), match=message):
        with_stream_norms(SteeringVector("v", torch.ones(3, 64)), model, chat, texts)
    assert ran == []


def test_stream_norms_are_of_a_vector(watched, chat):
    model, ran = watched
    with pytest.raises(TypeError, match="takes a SteeringVector, got Tensor"):
        with_stream_norms(torch.ones(3, 64), model, chat, ["a"])
    assert ran == []


def test_tokens_of_another_model_are_refused_before_it_runs(chat):
    small = tiny_llama(vocabulary=100, layers=1)
    ran = forwards(small)
    with pytest.raises(ValueError, match=r"text \d has token ids .* this model knows 0 to 99"):
        extract_pairs(small, chat, [("a", "b"), ("a", "\xff")], name="v", batch_size=1)
    with pytest.raises(ValueError, match="token ids -1 to 5"):
        extract_mean(small, [[1, 2], [-1, 5]], name="v", batch_size=1)
    with pytest.raises(TypeError, match=r"a token id is an integer, got 1\.5"):
        extract_mean(small, [[1, 2], [1.5]], name="v", batch_size=1)
    with pytest.raises(ValueError, match="each of at least one token"):
        extract_mean(small, [[1, 2], []], name="v")
    with pytest.raises(TypeError, match="pair 1: the tokenizer is a NoneType, which reads no text"):
        extract_pairs(small, None, [("a", "b")], name="v")
    with pytest.raises(ValueError, match="max_tokens is 0"):
        extract_corpora(small, chat, ["a"], ["b"], name="v", max_tokens=0)
    with pytest.raises(ValueError, match=r"text 1 .*begins behind its first 5 tokens"):
        extract_corpora(
            small, chat, [[*asked("Hi"), said("assistant", "Yo")]], ["b"], name="v", max_tokens=5
        )
    assert ran == []


def test_where_preferences_are_measured_the_held_out_pairs_of_a_set_are_meant():
    held = load("french").held_out
    assert as_pairs(load("french"), "x", "held_out") == held
    assert preferences(load("french"), "x", "held_out") == held
    assert preferences(list(PAIRS), "x", "held_out") == PAIRS
    twice = ContrastPair("a", "b", "c", negative_prompt="d")
    with pytest.raises(ValueError, match="pair 2 has two prompts"):
        preferences([PAIRS[0], twice], "x")
    assert preferences([ContrastPair("a", "b", "c", negative_prompt="a")], "x")
