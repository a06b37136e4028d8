"""Contrast sets and corpora as people have them: whatever the file is, the same pairs and texts; else file and line."""

from __future__ import annotations

import json

import pytest
from plain_streams import Streams, assert_vector, chat_tokenizer, said
from tiny_llama import BYTES, tiny_llama

from steerfast import contrast, extract_corpora, extract_pairs
from steerfast.experiments.corpora import read_corpus, split_corpus
from steerfast.experiments.measure import cut
from steerfast.extraction.contrast import ContrastPair
from steerfast.extraction.texts import count_texts, read_texts

ROWS = [
    {"prompt": "Q1:", "positive": " good", "negative": " bad, very"},
    {"prompt": "Q2:\nA:", "positive": ' "yes"', "negative": " no", "split": "held_out"},
    {"positive": "All well", "negative": "All lost", "split": "train"},
    {"prompt": "R", "positive": " x", "negative": " x", "negative_prompt": "S"},
]
TRAIN = (
    ContrastPair("Q1:", " good", " bad, very"),
    ContrastPair("", "All well", "All lost"),
    ContrastPair("R", " x", " x", negative_prompt="S"),
)
HELD_OUT = (ContrastPair("Q2:\nA:", ' "yes"', " no"),)
HEADER = "negative,positive,prompt,split,negative_prompt\n"
CSV = (
    HEADER
    + '" bad, very", good,Q1:,,\n no," ""yes""","Q2:\nA:",held_out,\nAll lost,All well,,train,\n x, x,R,,S\n'
)
SETS = {
    "moods.json": [json.dumps({"pairs": ROWS}), json.dumps(ROWS, indent=2), "\n".join(map(json.dumps, ROWS))],
    "moods.jsonl": ["\n\n".join(map(json.dumps, ROWS))],
    "moods.csv": [CSV, "\ufeff" + CSV.replace(HEADER, "\n" + HEADER), CSV.replace(",", ";").replace("bad;", "bad,")],
    "moods.tsv": [CSV.replace(",", "\t").replace("bad\t", "bad,")],
    "moods": [json.dumps(ROWS)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, each in SETS.items() for text in each], ids=range(9)
)
def test_a_set_is_what_it_is_in_any_file(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = contrast.load(tmp_path / name)
    assert (found.name, found.train, found.held_out) == ("moods", TRAIN, HELD_OUT)


@pytest.mark.parametrize("as_lists", [True, False])
@pytest.mark.parametrize("lines", [True, False])
def test_pairs_as_lists_and_messages(as_lists, lines, tmp_path):
    asked = [said("system", "Be kind."), said("user", "Hi")]
    rows = [["Q", " a", " b"], ["A whole text", "Another"], [asked, "Hello", "Go"]]
    if not as_lists:
        names = ("prompt", "positive", "negative")
        rows = [dict(zip(names[-len(row) :], row, strict=True)) for row in rows]
    path = tmp_path / "x.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps({"pairs": rows}))
    assert contrast.load(path).train == (
        ContrastPair("Q", " a", " b"),
        ContrastPair("", "A whole text", "Another"),
        ContrastPair(asked, "Hello", "Go"),
    )


def test_a_vector_from_a_table_is_that_of_its_pairs(tmp_path):
    model, tokenizer = tiny_llama(vocabulary=258, layers=2, **BYTES), chat_tokenizer()
    (tmp_path / "x.csv").write_text(CSV)
    made = extract_pairs(model, tokenizer, contrast.load(tmp_path / "x.csv"), name="v")
    last = Streams(model).last
    ends = [
        ("<s>Q1: good", "<s>Q1: bad, very"),
        ("<s>All well", "<s>All lost"),
        ("<s>R x", "<s>S x"),
    ]
    assert_vector(made, sum(last(one) - last(other) for one, other in ends) / 3)


REFUSED = {
    "x.csv": {
        "Q1:, good, bad\nQ2:, a, b\n": r"pair 1 of .*x\.csv \(line 2\) has unknown keys",
        "prompt,positive\nQ, a\n": r"pair 1 of .* \(line 2\) lacks 'negative'",
        "prompt,positive,negative\nQ, a, b\nQ,,b\n": r"pair 2 of .* \(line 3\) lacks 'positive'",
        "prompt,positive,negative\nQ, a, b, c\n": r"line 2\) has 4 cells.*written in quotes",
        "prompt,positive,negative\n": "holds no pairs",
        "positive,negative,split\n\na,b,test\n": r"\(line 3\) has split 'test'",
    },
    "x.jsonl": {
        '{"prompt": "a", "positive": "b", "negative": "c"}\n{"prompt": 5, "positive": "b", "negative": "c"}': r"'prompt' of pair 2 of .*x\.jsonl \(line 2\) is text or a list of messages, got 5",
        '["a", "b"]\n\n["a"]': r"pair 2 of .* \(line 3\) is \['a'\]; a pair is",
        '["a", "b"]\n["a", ]': "line 2, is JSON, but",
        '{"prompt": [{"role": "user"}, 5], "positive": "b", "negative": "c"}': "'prompt' of pair 1",
    },
    "x.json": {
        '{"pairs": [\n["a", "b"],\n["a", "b", "c", "d"]]}': r"pair 2 of .*x\.json \(line 3\) is",
        '{"pairs": [["a", "b"]], "held_out": [["c", "d"]]}': r"unknown keys \['held_out'\]",
        '{"prompt": ["a"], "positive": ["b"], "negative": ["c"]}': "'pairs' of .* is a list",
        '[{"positive": [{"from": "human"}], "negative": "b"}]': r"\(line 1\) has no role",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, text, message) for name, each in REFUSED.items() for text, message in each.items()],
    ids=range(sum(map(len, REFUSED.values()))),
)
def test_what_is_no_pair_is_named_with_file_and_line(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        contrast.load(path)
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)


TWENTY = [f"I am so happy, number {n}" for n in range(20)]
TEXTS = {
    "x.txt": ["\n".join(TWENTY), "\ufeff\n" + "\r\n".join(TWENTY) + "\r\n\r\n\r\n", "\n\n".join(TWENTY)],
    "x.jsonl": ["\n".join(json.dumps({key: one, "id": 5}) for one in TWENTY) for key in ("text", "prompt")]
    + ["\n".join(map(json.dumps, TWENTY))],
    "x.json": [
        json.dumps(TWENTY),
        json.dumps({"texts": [{"text": one} for one in TWENTY]}, indent=1),
        "\n".join(json.dumps({"text": one}) for one in TWENTY),
    ],
    "x.csv": ["id,text\n" + "".join(f'{n},"{one}"\n' for n, one in enumerate(TWENTY))],
    "x.tsv": ["prompt\n" + "\n".join(TWENTY)],
    "prompts": ["\n".join(TWENTY)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, each in TEXTS.items() for text in each],
    ids=range(sum(map(len, TEXTS.values()))),
)
def test_twenty_texts_in_any_file(name, text, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert list(read_texts(path)) == list(read_texts(str(path))) == TWENTY
    assert list(read_texts(path, 3)) == TWENTY[:3]
    assert (count_texts(path), count_texts(path, 7)) == (20, 7)


def test_blank_lines_stand_between_texts_of_several_lines(tmp_path):
    (tmp_path / "x.txt").write_text("\none\ntwo\n \n\nthree\n\n")
    assert list(read_texts(tmp_path / "x.txt")) == ["one\ntwo", "three"]


def test_conversations_in_files(tmp_path):
    each = [[said("user", "Hi")], [said("system", "S"), said("user", "Yo"), said("assistant", "A")]]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"messages": one}) for one in each))
    (tmp_path / "x.json").write_text(json.dumps(each))
    for name in ("x.jsonl", "x.json"):
        assert list(read_texts(tmp_path / name)) == [tuple(one) for one in each]
    with pytest.raises(ValueError, match="holds chat messages; studies read plain text"):
        read_corpus(str(tmp_path / "x.jsonl"))


def test_one_text_is_no_corpus_to_study():
    with pytest.raises(TypeError, match="the corpus 'c' takes an iterable of texts"):
        split_corpus("c", "a text of some letters", 2, 0)
    with pytest.raises(TypeError, match="the corpus 'c' takes an iterable of texts"):
        cut("c", chat_tokenizer(), "a text of some letters", 8, 8)


def test_a_corpus_of_lines_makes_the_vector_of_its_lines(tmp_path):
    model, tokenizer = tiny_llama(vocabulary=258, layers=2, **BYTES), chat_tokenizer()
    (tmp_path / "pos.txt").write_text("I am happy\nSo glad\n")
    (tmp_path / "neg.jsonl").write_text('{"text": "I am sad"}\n')
    sides = (read_texts(tmp_path / name) for name in ("pos.txt", "neg.jsonl"))
    made = extract_corpora(model, tokenizer, *sides, name="v")
    last = Streams(model).last
    assert_vector(made, (last("<s>I am happy") + last("<s>So glad")) / 2 - last("<s>I am sad"))
    assert made.provenance["counts"] == {"positive": 2, "negative": 1}


NO_TEXTS = {
    "x.txt": {
        "": "holds no text",
        " \n\n": "holds no text",
        '{"text": "a"}\n{"text": "b"}': r"line 1, is a row of JSON; call the file \.jsonl",
        b"a\n\xff": "line 2, is text in UTF-8",
    },
    "x.jsonl": {
        "": "holds no text",
        '"a"\n{"content": "b"}': r"text 2 of .*x\.jsonl \(line 2\) is a row with content; a text is at one of",
        '"a"\n\n5': r"text 2 of .* \(line 3\) is text or a list of messages, got 5",
        '{"text": null}': "text 1 of .*got None",
        "a\nb": "line 1, is JSON",
    },
    "x.csv": {
        "I am happy\nSo glad\n": r"text 1 of .* \(line 2\) is a row with I am happy",
        "text,prompt\na,b\n": "is a row with text, prompt",
    },
    "x.json": {"{}": "'texts' of .* is a list", '{"texts": ["a"], "more": []}': "unknown keys"},
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, text, message) for name, each in NO_TEXTS.items() for text, message in each.items()],
    ids=range(sum(map(len, NO_TEXTS.values()))),
)
def test_what_is_no_text_is_named_with_file_and_line(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(read_texts(path))
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)
