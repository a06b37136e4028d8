"""The command line, on a tiny model: every command, its JSON, its errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from steerfast import __version__, contrast, cost, load_vector, save_plan, steer
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
    assert by_plan["plan"] == plan.digest
    assert by_plan["layers"] == [1]
    assert by_plan["dose"] == pytest.approx(40 / load_vector(vector).stream_norms[1], rel=1e-6)
    assert by_plan["cost"] == {**cost(plan, 4)._asdict(), "phases": ["all"]}
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
        (
            ("checkpoint", "x", "--model", "nofolder"),
            "there is no folder of that name here, and the hub",
        ),
        (("checkpoint", "x", "--model", "no.gguf"), "'no.gguf': there is no such file here"),
        (("extract", "-o", "x.gguf", "--pairs", "french"), "a vector is written as .safetensors"),
    ],
)
def test_errors_are_one_line_and_status_1(arguments, message, tmp_path):
    command = [sys.executable, "-c", "from steerfast.cli import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_shortest_use_is_that_of_python_at_one_layer(tiny_folder, tmp_path):
    path = tmp_path / "french.safetensors"
    run("extract", "--pairs", "french", "--out", path, "--model", tiny_folder)
    vector, common = load_vector(path), ("generate", "hi", "-m", tiny_folder, "--tokens", 2)
    assert vector.suggested_layer == 1
    shortest = runner.invoke(app, [*map(str, common), "-v", f"{path}:2", "--json"])
    assert "no layer was named, so layer 1" in " ".join(shortest.stderr.split())
    facts = json.loads(shortest.stdout)
    assert facts["plan"] == steer(vector, 2.0, layers=vector.suggested_layer).digest
    assert facts["layers"] == [1]
    for given, plan in {
        f"{path}:2:1": steer(vector, 2.0, layers=1),
        f"{path}:2:all": steer(vector, 2.0),
    }.items():
        told = runner.invoke(app, [*map(str, common), "-v", given, "--json"])
        assert "no layer was named" not in told.stderr
        assert json.loads(told.stdout)["plan"] == plan.digest


@pytest.fixture
def commands(vector, tiny_folder, tmp_path):
    """{command: (its arguments, what its result says)}."""
    on = ("-m", tiny_folder)
    return {
        "env": ((), "reference"),
        "operators": ((), "slerp"),
        "extract": (("--pairs", "french", "-o", tmp_path / "v.safetensors", *on), "v.safetensors"),
        "generate": (("a prompt", "-v", f"{vector}:1:1", "--tokens", 2, *on), "a prompt"),
        "checkpoint": ((tmp_path / "copy", *on), "copy/"),
        "demo": (("--quick", "--out", tmp_path / "demo", *on), "Try next:"),
    }


@pytest.mark.parametrize("name", ["env", "operators", "extract", "generate", "checkpoint", "demo"])
def test_results_go_to_stdout_and_progress_to_stderr(name, commands):
    arguments, said = commands[name]
    words = [name, *map(str, arguments)]
    plain = runner.invoke(app, words, catch_exceptions=False)
    assert said in plain.stdout
    assert said not in plain.stderr
    as_json = runner.invoke(app, [*words, "--json"], catch_exceptions=False)
    (line,) = as_json.stdout.splitlines()
    assert isinstance(json.loads(line), dict)
    assert said in as_json.stderr


def test_the_report_of_a_generation_is_one_line(vector, tiny_folder):
    common = ("generate", "hello", "-m", str(tiny_folder), "--tokens", "6", "-v")
    shown = runner.invoke(app, [*common, f"{vector}:1:all"])
    # 5 letters, and the 5 new tokens that are read: the sixth is not
    assert "steered 10 of the 10 tokens read, at resid_post[1], resid_post[2], by" in shown.stderr
    assert runner.invoke(app, [*common, f"{vector}:0"]).stderr.count("no token was steered") == 1


@pytest.mark.parametrize(
    "program", [["-m", "steerfast"], ["-c", "from steerfast.cli import main; main()"]]
)
def test_the_version(program):
    done = subprocess.run([sys.executable, *program, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"steerfast {__version__}\n", "")


def test_a_warning_is_one_line(vector, tiny_folder):
    command = ["generate", "hi", "-m", str(tiny_folder), "--tokens", "2", "-v", f"{vector}:5000:1"]
    done = subprocess.run(
        [sys.executable, "-m", "steerfast", *command], capture_output=True, text=True
    )
    assert done.returncode == 0
    (said,) = [
        line for line in done.stderr.splitlines() if "typical norm" in line and "warning" in line
    ]
    assert said.startswith("warning: the plan adds ")
    assert "UserWarning" not in done.stderr
