"""Extraction: against activations read one text at a time, without padding, by ``output_hidden_states``."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import byte_tokenizer, tiny_llama

from steerfast import attach, extract_corpora, extract_pairs, steer
from steerfast.extraction.contrast import ContrastPair
from steerfast.extraction.extract import with_stream_norms
from steerfast.extraction.stream_norms import NormHistogram
from steerfast.models.tokens import read, token_ids

PAIRS = [
    ContrastPair("The sea is", " blue and wide today", " grey"),
    ContrastPair("A", " good dog", " bad dog, very bad"),
    ContrastPair("We went to the market in the rain and", " sang", " sulked all the way home"),
]


@torch.no_grad()
def streams(model, tokenizer, text):
    """[L, T, D] outputs of every decoder layer for one unpadded text."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: found.append(out[0]))
        for layer in model.model.layers
    ]
    model(torch.tensor([tokenizer(text)["input_ids"]]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).double()


def oracle(model, tokenizer, pick):
    total = 0
    for pair in PAIRS:
        for sign, tail in ((1, pair.positive), (-1, pair.negative)):
            states = streams(model, tokenizer, pair.prompt + tail)
            first = len(
                tokenizer(pair.prompt)["input_ids"]
            )  # bytes: token boundaries are character boundaries
            total = total + sign * pick(states, first)
    return total / len(PAIRS)


@pytest.mark.parametrize(
    ("position", "pick"),
    [
        ("last", lambda s, first: s[:, -1]),
        ("mean", lambda s, first: s[:, first:].mean(1)),
        (-2, lambda s, first: s[:, -2]),
        (0, lambda s, first: s[:, 0]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_pairs(tiny, position, pick, batch_size):
    model, tokenizer, _ = tiny
    vector = extract_pairs(
        model, tokenizer, PAIRS, name="v", position=position, batch_size=batch_size
    )
    wanted = oracle(model, tokenizer, pick)
    assert vector.layers == (0, 1, 2, 3)
    for layer in vector.layers:
        torch.testing.assert_close(vector.at(layer).double(), wanted[layer], rtol=1e-5, atol=1e-5)
    assert vector.provenance["model"].endswith("tiny-llama")
    assert vector.provenance["counts"] == {"pairs": 3}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_corpora(tiny, batch_size):
    model, tokenizer, _ = tiny
    text, code = ["One day.", "Rain fell on the hills.", "No."], ["x = 1", "for i in y: pass"]
    vector = extract_corpora(
        model,
        tokenizer,
        iter(text),
        iter(code),
        name="text minus code",
        batch_size=batch_size,
        max_tokens=12,
    )
    means = [
        torch.stack([streams(model, tokenizer, t[:12])[:, -1] for t in side]).mean(0)
        for side in (text, code)
    ]
    for layer in range(4):
        torch.testing.assert_close(
            vector.at(layer).double(), (means[0] - means[1])[layer], rtol=1e-5, atol=1e-5
        )
    assert vector.provenance["counts"] == {"positive": 3, "negative": 2}


def test_stream_norms_are_medians_without_position_0_and_padding(tiny):
    model, tokenizer, _ = tiny
    vector = extract_pairs(model, tokenizer, PAIRS, name="v", batch_size=4)
    norms = [
        streams(model, tokenizer, pair.prompt + tail)[:, 1:].norm(dim=-1)
        for pair in PAIRS
        for tail in (pair.positive, pair.negative)
    ]
    for layer, median in enumerate(torch.cat(norms, 1).median(1).values):
        assert vector.stream_norms[layer] == pytest.approx(float(median), rel=0.003)
    bare = type(vector)("v", dict(vector.directions))
    texts = [pair.prompt + tail for pair in PAIRS for tail in (pair.positive, pair.negative)]
    again = with_stream_norms(bare, model, tokenizer, texts)
    assert dict(again.stream_norms) == dict(vector.stream_norms)


def test_norm_histogram_against_sorted_values():
    histogram = NormHistogram(1)
    values = torch.rand(999, generator=torch.Generator().manual_seed(0)) * 1000 + 1e-3
    for part in values.split(100):
        histogram.add(0, part)
    assert histogram.medians()[0] == pytest.approx(float(values.median()), rel=0.003)


def test_the_model_is_left_as_it_was(tiny):
    model, tokenizer, _ = tiny
    model.train()
    extract_pairs(model, tokenizer, PAIRS, name="v")
    assert model.training
    assert not any(layer._forward_hooks for layer in model.model.layers)
    with pytest.raises(ValueError, match="outside a text"):
        extract_pairs(model, tokenizer, PAIRS, name="v", position=500)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_refusals(tiny):
    model, tokenizer, _ = tiny
    with pytest.raises(ValueError, match="at least one pair"):
        extract_pairs(model, tokenizer, [], name="v")
    with pytest.raises(ValueError, match="outside a text"):
        extract_pairs(model, tokenizer, PAIRS, name="v", position="first")
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_pairs(model, tokenizer, PAIRS, name="v", batch_size=0)
    with pytest.raises(ValueError, match="has no tokens"):
        extract_pairs(model, tokenizer, [ContrastPair("x", "", " y")], name="v")
    with pytest.raises(ValueError, match="extract_corpora's negative needs at least one text"):
        extract_corpora(model, tokenizer, ["a"], [], name="v")


def test_where_a_continuation_starts(tiny):
    _, tokenizer, _ = tiny
    assert read(tokenizer, "abc", " d").first == 3


def recorded(model):
    """The shapes of the ids that the decoder is called with from now on."""
    shapes = []
    model.model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes


QUESTION = ContrastPair("Is it going to rain on the hills tomorrow? I say: ", "yes", "no")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("position", ["last", "mean", -2])
def test_a_prompt_is_read_once_for_both_of_its_continuations(tiny, attention, position):
    model, tokenizer, _ = tiny
    whole = extract_pairs(model, tokenizer, [QUESTION] * 2, name="v", position=position)
    alone = [
        streams(model, tokenizer, QUESTION.prompt + tail)
        for tail in (QUESTION.positive, QUESTION.negative)
    ]
    first = len(tokenizer(QUESTION.prompt)["input_ids"])
    pick = {
        "last": lambda s: s[:, -1],
        "mean": lambda s: s[:, first:].mean(1),
        -2: lambda s: s[:, -2],
    }
    wanted = pick[position](alone[0]) - pick[position](alone[1])
    model.set_attn_implementation(attention)
    shapes = recorded(model)
    vector = extract_pairs(model, tokenizer, [QUESTION], name="v", position=position)
    assert shapes == [(1, first + len("yes") + len("no"))]
    for layer in vector.layers:
        torch.testing.assert_close(vector.at(layer).double(), wanted[layer], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vector.at(layer), whole.at(layer), rtol=1e-5, atol=1e-5)
    assert dict(whole.stream_norms) == pytest.approx(dict(vector.stream_norms), rel=0.003)


def test_a_continuation_may_be_the_beginning_of_the_other(tiny):
    model, tokenizer, _ = tiny
    pair = ContrastPair("They said ", "yes", "yes indeed")
    shapes = recorded(model)
    vector = extract_pairs(model, tokenizer, [pair], name="v")
    assert shapes == [(1, len(tokenizer("They said yes indeed")["input_ids"]))]
    wanted = (
        streams(model, tokenizer, "They said yes")[:, -1]
        - streams(model, tokenizer, "They said yes indeed")[:, -1]
    )
    torch.testing.assert_close(
        torch.stack([vector.at(layer) for layer in range(4)]).double(), wanted, rtol=1e-5, atol=1e-5
    )


def test_a_model_that_is_steered_meanwhile_reads_texts_apart(tiny):
    """Its route is made from a 2-D mask."""
    model, tokenizer, _ = tiny
    plain = extract_pairs(model, tokenizer, [QUESTION], name="v")
    shapes = recorded(model)
    plan = steer(plain, 0.5, layers=[0])
    with attach(model) as handle, handle.use(plan), pytest.warns(match="of the steered model"):
        steered = extract_pairs(model, tokenizer, [QUESTION], name="v")
    assert [rows for rows, _ in shapes] == [2]
    assert not torch.allclose(steered.at(3), plain.at(3))


def test_rows_of_near_lengths_share_a_batch(tiny):
    model, tokenizer, _ = tiny
    shapes = recorded(model)
    texts = ["a" * (40 if index % 2 else 3) for index in range(16)]
    extract_corpora(model, tokenizer, texts, texts[:1], name="v", batch_size=4)
    assert sorted(length for _, length in shapes)[:2] == [3, 3]  # not padded to 40
    assert sum(rows for rows, _ in shapes) == 17


@pytest.fixture(scope="module")
def chat():
    """A tokenizer that puts BOS in front of every text, and whose template begins with it too, as Llama's do."""
    tokenizer = byte_tokenizer(bos_in_front=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
    )
    return tokenizer


def test_a_text_that_begins_with_bos_is_not_given_another(chat):
    templated = chat.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat(templated)["input_ids"][:2] == [0, 0]  # what everybody meets
    wanted = chat.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=True)
    assert token_ids(chat, templated) == wanted["input_ids"]
    assert token_ids(chat, "Hi") == chat("Hi")["input_ids"]
    assert token_ids(byte_tokenizer(), "<s>Hi") == byte_tokenizer()("<s>Hi")["input_ids"]
    assert token_ids(chat, "<s><s>Hi")[:3] == [0, 0, chat("H")["input_ids"][1]]  # as it was written
    assert read(chat, templated, " yes").first == len(wanted["input_ids"])


@pytest.mark.parametrize("position", ["last", "mean"])
def test_templated_pairs_are_read_with_one_bos(chat, position):
    model = tiny_llama(vocabulary=258, eos_token_id=1)
    asked = [
        chat.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        for text in ("Hi", "How are you?")
    ]
    pairs = [ContrastPair(text, " well", " not so well") for text in asked]
    made = extract_pairs(model, chat, pairs, name="v", position=position)
    total = 0
    for pair in pairs:
        for sign, ending in ((1, pair.positive), (-1, pair.negative)):
            ids = chat(
                pair.prompt + ending, add_special_tokens=False, return_tensors="pt"
            ).input_ids
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[2][0]
            own = states[-len(ending) :]  # a token a byte
            total = total + sign * (own[-1] if position == "last" else own.mean(0)) / len(pairs)
    torch.testing.assert_close(made.at(1), total, rtol=1e-4, atol=1e-5)
