"""What strangers write to do harm: time, memory and depth of every reader are bounded, and nothing leads out of a folder."""

from __future__ import annotations

import json

import fuzz_readers
import pytest
import torch
from safetensors.torch import save_file

from steerfast import contrast, load_plan, load_vector
from steerfast.experiments import config, questions
from steerfast.io.plans import plan_from_json
from steerfast.io.strict import DEEPEST, _object

ABOUT = {"format": "steerfast.vector/1", "name": "v"}
RECORD = {
    "question": "Is it?",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}
PRESET = 'model = "m"\ndtype = "float32"\n'
DEEP_TOML = {
    "nested too deeply": ["notes = " + 100 * "[" + 100 * "]", 3000 * "[", "a." * 3000 + "a = 1"],
    "too deeply": ["'a' . " * 40 + "a = 1", "notes = " + 70 * "{a = " + "1" + 70 * "}"],
    "is not TOML": ["layer = [", "a = " + "9" * 5000, b"a = '\xff'", 30_000 * '"\\'],
    "an integer that 64 bits do not": [
        f"layer = {2**63}",
        f"[x]\ncoefficients = [1, -{2**63 + 1}]",
    ],
}


@pytest.mark.parametrize(
    ("message", "text"), [(message, one) for message, each in DEEP_TOML.items() for one in each]
)
def test_presets_that_no_configuration_is(message, text, tmp_path):
    path = tmp_path / "t.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        config.load_preset(path)
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)


def test_text_in_quotes_is_no_key_and_no_bracket(tmp_path):
    quoted = 100 * "a.b[" + "'"
    path = tmp_path / "t.toml"
    path.write_text(f'notes = """{quoted}"""  # {quoted}\n{PRESET}')
    assert config.load_preset(path).notes == quoted


def test_nesting_has_a_limit_of_its_own_and_not_the_interpreters():
    """At any depth of the reader's own stack: what is read near that limit cannot be shown in an error."""

    def below(frames, text):
        return below(frames - 1, text) if frames else plan_from_json(text)

    for depth in (DEEPEST, DEEPEST + 1, 500, 900, *range(960, 1000)):
        text = '{"terms": [' + (depth - 2) * "[" + (depth - 2) * "]" + "]}"
        for frames in (0, 30):
            with pytest.raises(ValueError, match=r"at least|nested too deeply") as caught:
                below(frames, text)
            assert ("nested" in str(caught.value)) == (depth > DEEPEST)


def test_a_key_given_twice_among_many_is_found_in_one_pass():
    class Counted(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Counted.compared += 1
            return str.__eq__(self, other)

    pairs = [(Counted(f"k{number}"), 0) for number in range(5000)]
    with pytest.raises(ValueError, match="'k7' twice"):
        _object([*pairs, (Counted("k7"), 1)])
    assert Counted.compared < 20_000


@pytest.mark.parametrize("name", ["../q", "sub/q", "/q", "", " "])
def test_questions_are_a_file_of_their_folder(name, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for place in ("q.json", "in/sub/q.json"):
        (tmp_path / place).write_text(json.dumps([RECORD]))
    with pytest.raises(ValueError, match="no file's name"):
        questions.load(tmp_path / "in", name)


@pytest.mark.parametrize("name", [5000 * "x", 251 * "x", "a\0b", "\ud800", "a/" * 3000 + "b"])
def test_a_name_that_no_file_can_have_is_no_file(name, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"terms": [{"vector": name}]}))
    for read in (lambda: load_plan(path), lambda: load_vector(tmp_path / name)):
        with pytest.raises((FileNotFoundError, ValueError)):
            read()
    with pytest.raises(ValueError, match="no contrast set"):
        contrast.load(name)
    with pytest.raises((FileNotFoundError, ValueError)):
        questions.load(tmp_path, name)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_directions_are_real_numbers(dtype, tmp_path):
    path = tmp_path / "v.safetensors"
    tensors = {"directions.0": torch.ones(8, dtype=dtype)}
    save_file(tensors, path, metadata={"steerfast": json.dumps(ABOUT)})
    with pytest.raises(ValueError, match="directions are real numbers"):
        load_vector(path)


def test_whatever_is_read_is_read_or_refused(monkeypatch):
    """A short run of the fuzz of all readers (``fuzz_readers.py``): the same inputs every time."""
    monkeypatch.setattr(fuzz_readers, "SLOW", 60.0)  # a limit that no machine meets
    summary = fuzz_readers.readers(seconds=600.0, seed=5, most=2000)
    assert summary["found"] == {}
    assert summary["inputs"] == 2000
    assert len(summary["read"]) == len(summary["refused"]) == 19
