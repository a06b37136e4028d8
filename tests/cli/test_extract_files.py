"""``steerfast extract`` from files as people have them: a text a line, JSONL, a table of pairs."""

from __future__ import annotations

import json

import pytest
import torch
from plain_streams import Streams, assert_vector
from typer.testing import CliRunner

from steerfast import load_vector
from steerfast.cli import app
from steerfast.models.load import load_model

SIDES = {"pos": ["I am happy", "So glad"], "neg": ["I am sad", "So sorry"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for side, texts in SIDES.items():
        (folder / f"{side}.txt").write_text("\n".join(texts))
        rows = "\n".join(json.dumps({"text": one}) for one in texts)
        (folder / f"{side}.jsonl").write_text(rows)
    pairs = [",".join(pair) for pair in zip(*SIDES.values(), strict=True)]
    (folder / "pairs.csv").write_text("\n".join(["positive,negative", *pairs]))
    return folder


def extract(*arguments):
    return CliRunner().invoke(app, ["extract", *map(str, arguments), "--json"])


@pytest.fixture(scope="module")
def wanted(tiny_folder):
    last = Streams(load_model(str(tiny_folder), dtype=torch.float32).model).last
    return sum(last(one) - last(other) for one, other in zip(*SIDES.values(), strict=True)) / 2


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_the_vector_is_that_of_the_texts(files, tiny_folder, wanted, kind):
    if kind == "csv":
        given, counts = ["--pairs", files / "pairs.csv"], {"pairs": 2}
    else:
        given = ["--positive", files / f"pos.{kind}", "--negative", files / f"neg.{kind}"]
        counts = {"positive": 2, "negative": 2}
    out = files / f"{kind}.safetensors"
    result = extract(*given, "-o", out, "-m", tiny_folder, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["provenance"]["counts"] == counts
    assert_vector(load_vector(out), wanted)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"txet": "b"}', r"x\.jsonl \(line 2\) is a row with txet"),
        ("x.csv", "text,n\na,1\nb,2,3\n", r"x\.csv \(line 3\) has 3 cells"),
        ("x.txt", b"a\n\xff\n", r"x\.txt, line 2, is text in UTF-8"),
    ],
)
def test_texts_are_read_before_a_model_is(files, tmp_path, name, text, message):
    """The model named here is not there, and nobody has looked."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    corpora = ["--positive", files / "pos.txt", "--negative", tmp_path / name]
    with pytest.raises(ValueError, match=message):
        raise extract(*corpora, "-o", tmp_path / "v.safetensors", "-m", "absent").exception
