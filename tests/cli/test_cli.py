"""The command line, on a tiny model: every command, its JSON, its errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from steerfast import contrast, load_vector, save_plan, steer
from steerfast.cli import app

runner = CliRunner()


def run(*arguments):
    """The JSON object on the last line of stdout."""
    result = runner.invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def vector(tiny_folder, tmp_path):
    path = tmp_path / "french.safetensors"
    run("extract", "--pairs", "french", "--out", path, "--model", tiny_folder, "--layers", "1-2")
    return path


def test_env_names_every_backend():
    facts = run("env")
    assert [status["name"] for status in facts["backends"]] == [
        "cuda",
        "triton",
        "cpu",
        "reference",
    ]
    assert all(status["detail"] for status in facts["backends"])
    assert facts["auto"]["cpu"] in ("cpu", "reference")
    assert {"steerfast", "torch", "transformers", "triton"} <= set(facts["versions"])


def test_extract_from_pairs(vector):
    loaded = load_vector(vector)
    assert loaded.layers == (1, 2)
    assert loaded.provenance["counts"] == {"pairs": len(contrast.load("french").train)}
    assert set(loaded.stream_norms) == {0, 1, 2, 3}


def test_extract_from_corpora(tiny_folder, tmp_path):
    (tmp_path / "text.txt").write_text("One day.\n\nIt rained\non the hills.\n\n\nEnd.\n")
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("x = 1\n")
    (code / "b.py").write_text("for i in x:\n\n    print(i)\n")
    (code / "empty.py").write_text("\n")
    out = tmp_path / "v.safetensors"
    facts = run(
        "extract", "--positive", tmp_path / "text.txt", "--negative", code, "-o", out, "-m", tiny_folder,
        "--position", "mean",
    )  # fmt: skip
    assert facts["name"] == "text minus code"
    assert facts["provenance"]["counts"] == {"positive": 3, "negative": 2}
    assert load_vector(out).layers == (0, 1, 2, 3)


def test_generate_side_by_side(vector, tiny_folder, tmp_path):
    common = ("generate", "hello", "-m", tiny_folder, "--dtype", "float32", "--tokens", 6)
    by_vector = run(*common, "-v", f"{vector}:40:1", "--scale", "unit")
    assert by_vector["steered"] != by_vector["unsteered"]
    plan = steer(load_vector(vector), 40.0, layers=[1], scale="unit")
    by_plan = run(*common, "--plan", save_plan(plan, tmp_path / "plan.json"))
    assert by_plan == by_vector
    nothing = run(*common, "-v", f"{vector}:0")
    assert nothing["steered"] == nothing["unsteered"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "-o", "x"), "either --pairs, or both"),
        (("extract", "-o", "x", "--pairs", "absent"), "no contrast set 'absent'"),
        (("generate", "hi"), "either --plan, or --vector"),
        (("generate", "hi", "-v", "a"), "FILE:NUMBER"),
        (("generate", "hi", "-v", "absent.safetensors:1"), "no vector file"),
        (("generate", "hi", "-v", "a:b"), "'b' in 'a:b' is no coefficient"),
        (("demo", "--dtype", "int8"), "unknown dtype 'int8'"),
        (("demo", "--model", "no/such/folder"), "cannot load model"),
    ],
)
def test_errors_are_one_line_and_status_1(arguments, message, tmp_path):
    command = [sys.executable, "-c", "from steerfast.cli import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
