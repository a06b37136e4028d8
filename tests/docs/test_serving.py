"""docs/serving.md without a server: its commands, its request and its settings (its Ray examples: tests/vllm)."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from steerfast import SteeringVector, steer
from steerfast.cli import app
from steerfast.io.plans import plan_from_json
from steerfast.serving.batch import MAX_NEW_TOKENS
from steerfast.serving.cache_size import MOST_TOKENS, MOST_TOKENS_CPU
from steerfast.serving.settings import Settings
from steerfast.serving.wire import FIELD

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_make_what_the_request_names(tiny_folder, tmp_path, monkeypatch):
    """``checkpoint`` and ``extract`` as printed, on a tiny model; then the plan of the curl, read as a server reads it."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True) for line in SHELL[0].splitlines()]
    ours = [words[1:] for words in commands if words[0] == ".venv/bin/steerfast"]
    assert [words[0] for words in ours] == ["checkpoint", "extract"]
    for words in ours:
        done = CliRunner().invoke(app, [*words, "-m", str(tiny_folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    server = commands[-1]
    assert (tmp_path / server[server.index("--model") + 1] / "config.json").exists()
    words = shlex.split(SHELL[1])
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == server[server.index("--model") + 1]
    assert (tmp_path / "vectors" / "sentiment.safetensors").exists()
    # The tiny model ends before layer 10.
    vector = SteeringVector("sentiment", {10: torch.ones(64)}, {10: 8.0})
    plan = plan_from_json(body["vllm_xargs"][FIELD], {"sentiment": vector})
    assert plan == steer(vector, 0.2, layers=[10], scale="stream")


def test_every_setting_is_listed_with_its_default():
    listed = dict(re.findall(r"\| `STEERFAST_(\w+)` \|\s*`?([^`|]*?)`?\s*\|", PAGE))
    known = {field.name.upper(): field.default for field in dataclasses.fields(Settings)}
    assert set(listed) == set(known)
    for name, default in known.items():
        if isinstance(default, int) and not isinstance(default, bool):
            assert listed[name] == str(default)


def test_the_example_of_transformers(tiny):
    """Two prompts, as printed; and the numbers that the page gives."""
    model, tokenizer, _ = tiny
    [code] = [code for code in PYTHON if "generate_batch" in code]
    plan = steer(SteeringVector("v", {1: torch.ones(64)}), 3.0)
    given = {"model": model, "tokenizer": tokenizer, "plan_a": plan}
    exec(code, given)
    one, two = given["answers"]
    assert one.tokens != two.tokens
    for number in (MAX_NEW_TOKENS, MOST_TOKENS_CPU, MOST_TOKENS):
        assert f"{number:,}" in PAGE


def test_lines_and_tables_fit():
    for line in PAGE.splitlines():
        if line.startswith("|"):
            assert line.count("|") <= 7, line
        else:
            assert len(line) <= 120, line
