"""What strangers write: every reader says what is wrong, as its own error, and takes nothing for something else."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from steerfast import SteeringVector, contrast, load_plan, load_vector, save_vector
from steerfast.experiments import config, questions
from steerfast.io.plans import plan_from_json
from steerfast.io.strict import as_layer, as_whole, parse
from steerfast.io.vectors import vector_from_json, vector_to_json

VECTOR = vector_to_json(SteeringVector("v", {0: torch.arange(1.0, 9.0)}, {0: 2.0}))
HUGE = "1" + 400 * "0"
DEEP = 100_000 * "["


def changed(**fields):
    return {**VECTOR, **fields}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is JSON, but this text is not"),
        ("{'a': 1}", "is JSON, but this text is not"),
        (b"\xff", "in UTF-8"),
        (DEEP, "nested too deeply"),
        (10_000 * '{"a":', "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "has 'c' twice"),
        ("[NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("1e999", "'1e999', which is beyond float64"),
        (HUGE, "which 64 bits do not"),
        (str(2**63), "which 64 bits do not"),
        ("-" + str(2**63 + 1), "which 64 bits do not"),
        (5000 * "9", "which 64 bits do not"),
    ],
    ids=range(13),
)
def test_text_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text, "a thing")
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith("a thing")
    assert len(str(caught.value)) < 300  # however long the text was


def test_what_json_says_is_what_is_read():
    text = '{"a": [1, -2, 3.5, true, null, "\\u00e9"], "b": {"c": {}, "d": [9223372036854775807, -9223372036854775808]}}'
    assert parse(text, "a thing") == json.loads(text)
    assert parse(text.encode(), "a thing") == json.loads(text)


@pytest.mark.parametrize("key", ["", " 0", "00", "01", "-1", "1_0", "1.0", "٣", "9999999999", "x"])
def test_a_layer_is_written_in_one_way(key):
    with pytest.raises(ValueError, match="layers are written"):
        as_layer(key, "a vector")
    assert [as_layer(str(layer), "a vector") for layer in (0, 7, 10, 120)] == [0, 7, 10, 120]


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, [1]])
def test_a_count_is_an_integer_and_nothing_like_one(value):
    with pytest.raises(ValueError, match="a whole number from 0"):
        as_whole(value, "a count")


VECTORS = {
    "'provenance' is an object": [changed(provenance=value) for value in (5, None, [], "x")],
    "'stream_norms' is an object": [changed(stream_norms=value) for value in (5, None, [])],
    "is a finite number": [
        changed(stream_norms={"0": value}) for value in (True, "1", None, [1.0], float("inf"))
    ],
    "a stream norm names layer": [changed(stream_norms={"1_0": 1.0})],
    "a vector names layer": [
        changed(directions={key: VECTOR["directions"]["0"]}) for key in (" 0", "1_0", "-1", "")
    ],
    "a vector's positions": [changed(positions=v) for v in (1.9, "1", True, 0, -1, float("inf"))],
    "a vector's name is text": [changed(name=value) for value in ([], None, 5, {})],
    "needs a name": [changed(name="")],
    "'directions' of an inline vector": [changed(directions=value) for value in (5, None, [], "x")],
    "base64 of little-endian float32": [
        changed(directions={"0": value}) for value in (5, None, "@@", "AAA", "AAAA", True)
    ],
    "unknown keys": [changed(layer=3)],
    "an inline vector is an object": [5, None, [], "x"],
}


@pytest.mark.parametrize(
    ("message", "data"), [(message, one) for message, each in VECTORS.items() for one in each]
)
def test_vectors_that_are_refused(message, data):
    with pytest.raises(ValueError, match=message) as caught:
        vector_from_json(data)
    assert type(caught.value) is ValueError


ABOUT = {"format": "steerfast.vector/1", "name": "v", "stream_norms": {"0": 1.0}}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("1", "its metadata is an object, got 1"),
        ("x", "its metadata is JSON, but"),
        (DEEP, "its metadata is nested too deeply"),
        (json.dumps(ABOUT).replace("1.0", HUGE), "64 bits"),
        (json.dumps(ABOUT)[:-1] + ', "name": "w"}', "its metadata has 'name' twice"),
        (json.dumps({**ABOUT, "name": 5}), "name is text"),
        (json.dumps({**ABOUT, "stream_norms": {"0": "1"}}), "finite number"),
        (json.dumps({**ABOUT, "format": "steerfast.vector/9"}), "format 'steerfast.vector/9'"),
    ],
)
def test_vector_files_that_are_refused(about, message, tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"directions.0": torch.ones(8)}, path, metadata={"steerfast": about})
    with pytest.raises(ValueError, match=message) as caught:
        load_vector(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["directions.1_0", "directions. 1", "directions.", "weights.0"])
def test_tensors_that_are_no_direction(name, tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({name: torch.ones(8)}, path, metadata={"steerfast": json.dumps(ABOUT)})
    with pytest.raises(ValueError, match=r"layers are written|a vector's are 'directions"):
        load_vector(path)


@pytest.mark.parametrize(
    "name", ["../secret", "../secret.safetensors", "sub/../../secret", "", " "]
)
def test_a_plan_takes_no_vector_from_outside_of_its_folder(name, tmp_path):
    save_vector(SteeringVector("v", {0: torch.ones(8)}), tmp_path / "secret.safetensors")
    (tmp_path / "plans" / "sub").mkdir(parents=True)
    path = tmp_path / "plans" / "p.json"
    for given in (name, str(tmp_path / "secret.safetensors")):
        path.write_text(json.dumps({"terms": [{"vector": given}]}))
        with pytest.raises(ValueError, match="is not in the plan's folder"):
            load_plan(path)


def test_a_plan_takes_vectors_from_below_its_folder(tmp_path):
    save_vector(SteeringVector("v", {0: torch.ones(8)}), tmp_path / "sub" / "v.safetensors")
    path = tmp_path / "p.json"
    for given in ("sub/v.safetensors", "sub/v"):
        path.write_text(json.dumps({"terms": [{"vector": given}]}))
        assert load_plan(path).terms[0].vector.name == "v"


PAIR = {"prompt": "a", "positive": "b", "negative": "c"}
SETS = {
    "is an object, got": ["5", '"sentiment"'],
    "pair 1 of .* is .*; a pair is": ['{"pairs": [5]}', '[["a"]]', '["a", "b"]', "[null]"],
    "'pairs' of .* is a list": ["{}", '{"pairs": 5}', '{"pairs": {}}'],
    "lacks 'negative'": [json.dumps({"pairs": [{"prompt": "a", "positive": "b"}]})],
    "'prompt' of pair 2 of .* is text or a list of messages, got 5": [
        json.dumps({"pairs": [PAIR, {**PAIR, "prompt": 5}]})
    ],
    "'negative' of pair 1": [json.dumps({"pairs": [{**PAIR, "negative": None}]})],
    "has split": [json.dumps({"pairs": [{**PAIR, "split": one}]}) for one in ([], None, "test", 1)],
    "'name' of .* is text": [json.dumps({"pairs": [PAIR], "name": 5})],
    "nested too deeply": [DEEP],
    "has 'prompt' twice": ['{"pairs": [{"prompt": "a", "prompt": "b"}]}'],
    "holds no pairs": [
        "[]",
        '{"pairs": []}',
        json.dumps({"pairs": [{**PAIR, "split": "held_out"}]}),
    ],
}


@pytest.mark.parametrize(
    ("message", "text"), [(message, one) for message, each in SETS.items() for one in each]
)
def test_contrast_sets_that_are_refused(message, text, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        contrast.load(path)
    assert str(path) in str(caught.value)


RECORD = {
    "question": "Is it?",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}
QUESTIONS = {
    "is an object, got 1": ["1"],
    "'questions' of .* is a list": ["{}", json.dumps(RECORD)],
    "record 1 of .* is an object": ["[5]", "[[]]", "[null]"],
    "record 2 of .* lacks 'question'": [json.dumps([RECORD, {"answer_matching_behavior": "(A)"}])],
    "'question' of record 1 of .* is text or a list of messages": [
        json.dumps([{**RECORD, "question": 5}])
    ],
    "'answer_matching_behavior' of record 1": [
        json.dumps([{**RECORD, "answer_matching_behavior": value}]) for value in (5, None, ["A"])
    ],
    "nested too deeply": [DEEP],
}


@pytest.mark.parametrize(
    ("message", "text"), [(message, one) for message, each in QUESTIONS.items() for one in each]
)
def test_questions_that_are_refused(message, text, tmp_path):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        questions.load(tmp_path, "q")


def test_a_line_that_is_no_question_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(RECORD)}\n\nnot json\n")
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3, is JSON"):
        questions.load(tmp_path, "q")


SPARSITY = """model = "m"
dtype = "float32"
[sparsity]
directions = ["sentiment"]
layer = 1
coefficients = [1, 0.5]
shares = [0.5]
tax_tokens = 10
"""


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ('"m"', "1", "model in .* is 1; it should be str"),
        ('"float32"', "nan", "dtype"),
        ('["sentiment"]', "[1]", r"directions in \[sparsity\] of .* is \[1\]"),
        ('["sentiment"]', '"sentiment"', "directions"),
        ("layer = 1", 'layer = "x"', "layer"),
        ("layer = 1", "layer = 1.5", "layer"),
        ("layer = 1", "layer = true", "layer"),
        ("[1, 0.5]", "[nan]", "coefficients"),
        ("[1, 0.5]", '["a"]', "coefficients"),
        ("[0.5]", "[true]", "shares"),
        ("tax_tokens = 10", "tax_tokens = 1.5", "tax_tokens"),
        ("[sparsity]\n", "behaviours = 5\n[sparsity]\n", r"it should be a table \[behaviours\]"),
    ],
)
def test_presets_that_are_ill_typed(one, other, message, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(SPARSITY)
    assert config.load_preset(path).sparsity.coefficients == (1, 0.5)
    assert one in SPARSITY
    path.write_text(SPARSITY.replace(one, other, 1))
    with pytest.raises(ValueError, match=message):
        config.load_preset(path)


def test_a_plan_mutated_anyhow_is_read_or_refused():
    """Bytes of a valid plan changed at random: a plan, or a ValueError; never anything else."""
    valid = json.dumps(
        {
            "terms": [
                {"vector": VECTOR, "coefficient": 2, "layers": [0], "select": {"positions": [0, 3]}}
            ],
            "schedule": [[0, 1.0], [4, 0.5]],
        }
    ).encode()
    draw = random.Random(0)
    letters = b'0123456789-+.eE"{}[]:,truefalsn \\u\xff'
    read = 0
    for _ in range(3000):
        text = bytearray(valid)
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(len(text))
            if draw.random() < 0.3:
                del text[at : at + draw.choice((1, 2, 9))]
            else:
                text[at : at + draw.randint(0, 1)] = bytes(draw.choices(letters, k=1))
        try:
            plan_from_json(bytes(text))
            read += 1
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017  a subclass would be another library's
    assert 30 < read < 2970  # both happen
