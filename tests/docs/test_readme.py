"""README is true: its model's answers, its picture, its commands; and it is short. (Its links and `steerfast` commands: test_pages.py.)"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from steerfast.io.plans import plan_from_json
from steerfast.plans.vector import SteeringVector

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHOWN = next(text for language, text in BLOCKS if language == "text")
SHELL = "".join(text for language, text in BLOCKS if not language).replace("\\\n", " ")
PICTURES = ROOT / "docs/pictures"


def test_it_is_read_on_a_phone():
    lines = README.splitlines()
    assert len(lines) <= 150
    for number, line in enumerate(lines, 1):
        assert len(line) <= 120, f"line {number} is {len(line)} characters wide"
        assert not line.startswith("|") or line.count("|") <= 7, f"more than six columns: {number}"


# --- the model of one's own


def hooked(model, tokenizer, given, dose, layer):
    """The answer under a plain forward hook, and how far ahead of the next its least certain token was."""
    direction = given["joy"].at(layer).double()
    added = dose * given["joy"].stream_norms[layer] * direction / direction.norm()

    def hook(module, args, output):
        stream = output[0] if isinstance(output, tuple) else output
        return stream + added.to(stream.dtype)

    # The first row's prompt only: rows of a batch do not see each other.
    prompt = {name: rows[:1] for name, rows in given["prompts"].items()}
    registered = model.model.layers[layer].register_forward_hook(hook)
    try:
        out = model.generate(
            **prompt,
            max_new_tokens=14,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        registered.remove()
    best = torch.stack(out.logits).topk(2).values
    text = tokenizer.decode(out.sequences[0], skip_special_tokens=True)
    return text, float((best[..., 0] - best[..., 1]).min())


@pytest.mark.model
def test_a_model_of_ones_own_answers_as_shown(smollm2, tmp_path, monkeypatch, capsys):
    """In a folder where ``smollm2`` is what ``steerfast checkpoint smollm2 --dtype float32`` writes."""
    smollm2.model.save_pretrained(tmp_path / "smollm2")
    smollm2.tokenizer.save_pretrained(tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)
    given = {}
    exec(compile(PYTHON[0], "README.md", "exec"), given)
    printed = capsys.readouterr().out
    by_hooks = [
        hooked(given["model"], given["tokenizer"], given, c, 10) for c in (-0.25, 0.0, 0.25)
    ]
    answers = [text for text, _ in by_hooks]
    assert printed == "\n".join(answers) + "\n"
    assert len(set(answers)) == 3
    # Processors differ in the order of their sums, below 1e-3 here: another text than README's would be a fault.
    assert min(lead for _, lead in by_hooks) > 5e-3
    assert printed == SHOWN


def test_the_shipped_pairs_are_those_named():
    from steerfast import contrast

    sentence = re.search(r"Ours ship:\s+(.*?)\.\n\n", README, re.DOTALL)[1]
    given = {"contrast": contrast}
    exec(re.search(r"`(pairs = .*?)`", sentence)[1], given)
    assert len(given["pairs"]) >= 24
    named = {"sentiment", *re.findall(r"`(\w+)`", sentence)}
    assert named == set(contrast.shipped())


# --- the picture


def test_the_picture_is_drawn_from_its_data():
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    data = json.loads((PICTURES / "steering.json").read_text(encoding="utf-8"))
    drawn = (PICTURES / "steering.svg").read_text(encoding="utf-8")
    assert drawn == draw.draw(data), "python docs/pictures/draw.py draws it anew"
    assert "](docs/pictures/steering.svg)" in README
    words = " ".join(ElementTree.fromstring(drawn).itertext())
    for _, answer in data["generations"]:
        assert " ".join(answer.split()[:6]) in words
    assert all(name in words for name in data["dose_response"])


@pytest.mark.model
def test_the_pictures_data_are_what_the_model_says(smollm2):
    """One answer and one point of one curve of steering.json, anew."""
    from steerfast import attach, contrast, extract_pairs
    from steerfast.experiments.demo import generations
    from steerfast.experiments.dose import dose_response

    data = json.loads((PICTURES / "steering.json").read_text(encoding="utf-8"))
    model, tokenizer, name = smollm2
    known, layer = contrast.load(data["direction"]), data["layer"]
    vector = extract_pairs(model, tokenizer, known.train, name=known.name, position="mean")
    dose, effect, _ = data["dose_response"][known.name][-1]
    doses = [coefficient for coefficient, _ in data["generations"]]
    asked = {"coefficients": doses, "tokens": 8}
    with attach(model) as handle:
        texts = generations(handle, tokenizer, vector, data["prompt"], layer, **asked)
        points = dose_response(
            handle, tokenizer, vector, known.held_out, layers=[layer], coefficients=[dose]
        )
    assert name == data["model"]
    assert points[0].effect == pytest.approx(effect, abs=0.02)
    for row, (_, answer) in zip(texts, data["generations"], strict=True):
        assert answer.startswith(row["text"])


# --- the commands


def test_what_make_is_asked_for_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = re.findall(r"^make (.*)$", SHELL, re.MULTILINE)
    targets = {target for line in asked for target in shlex.split(line, comments=True)}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_what_pip_is_asked_for_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r'"\.\[(\w+)\]"', SHELL)
    assert extras == ["cli"]
    assert set(extras) <= set(project["optional-dependencies"])
    plugins = re.search(r"VLLM_PLUGINS=([\w,]+)", SHELL)[1].split(",")
    points = project["entry-points"]
    assert set(plugins) == set(points["vllm.general_plugins"]) | set(
        points["vllm.endpoint_plugins"]
    )


def test_the_request_to_the_server_holds_a_plan():
    """As a shell hands it to curl; the vector is the one that the commands before it extract."""
    call = shlex.split(re.search(r"^curl .*", SHELL, re.DOTALL | re.MULTILINE)[0])
    body = json.loads(call[call.index("-d") + 1])
    model = re.search(r"--model (\S+)", SHELL)[1]
    assert body["model"] == model
    assert f"steerfast checkpoint {model}" in SHELL
    name = re.search(r"--out vectors/(\w+)\.safetensors", SHELL)[1]
    vector = SteeringVector(name, {10: torch.ones(4)}, {10: 2.0})
    plan = plan_from_json(body["vllm_xargs"]["steerfast"], {name: vector})
    assert plan.terms[0].vector.name == name
    assert (plan.terms[0].layers, plan.terms[0].scale) == ((10,), "stream")


def test_the_server_starts_as_the_tested_one_does():
    """Its options and variables are among those of docs/serving.md, whose commands tests/vllm runs."""
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    server = re.search(r"vllm\.entrypoints\.openai\.api_server.*", SHELL)[0]
    options = re.findall(r"--[\w-]+", server)
    assert {"--model", "--block-size", "--enforce-eager"} <= set(options)
    for word in [*options, *re.findall(r"\b(?:STEERFAST|VLLM)_\w+", SHELL)]:
        assert word in page, word
