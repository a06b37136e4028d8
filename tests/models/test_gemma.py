"""The second real model, Gemma 3 270M: sandwich norms, sliding layers. Idle is stock, steered is the hook, directions steer."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
from typer.testing import CliRunner

from steerfast import Plan, SteeringVector, attach, contrast, extract_pairs, steer
from steerfast.cli import app
from steerfast.experiments.config import load_preset
from steerfast.experiments.demo import generations, setting_for
from steerfast.experiments.dose import log_probability_differences, pair_batch, random_control
from steerfast.models.inspection import inspect_model
from steerfast.plans.term import Term

pytestmark = pytest.mark.model
PROMPTS = [pair.prompt for name in contrast.shipped() for pair in contrast.load(name).held_out[:4]]
TOKENS = 3
LAYERS = 18


@pytest.fixture(scope="module")
def vector(gemma3):
    """Random, of a twentieth of the stream's length, which is 100 behind the first layer and 37,000 behind the last."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(2, 4.5, LAYERS) / 20
    directions = {
        layer: size * torch.nn.functional.normalize(torch.randn(640, generator=generator), dim=0)
        for layer, size in enumerate(sizes)
    }
    return SteeringVector("random", directions)


def plans(vector):
    """(plan, {module's path: what a plain hook does to its output}), 30 of them."""

    def added(coefficient, layer):
        return lambda h: h + coefficient * vector.at(layer)

    def ablated(layer):
        unit = torch.nn.functional.normalize(vector.at(layer), dim=0)
        return lambda h: h - (h @ unit)[..., None] * unit

    def kept_long(coefficient, layer):
        def change(h):
            moved = h + coefficient * vector.at(layer)
            return moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

        return change

    made = []
    for layer in (0, 4, 8, 11, 14, 17):
        at, post = f"model.layers.{layer}", {"layers": [layer]}
        for c in (-1.0, 2.0):
            made.append((steer(vector, c, **post), {at: added(c, layer)}))
        mid = Term(vector, 1.5, layers=(layer,), site="resid_mid")
        made.append((Plan((mid,)), {f"{at}.post_attention_layernorm": added(1.5, layer)}))
        made.append(
            (Plan((Term(vector, layers=(layer,), operator="ablate"),)), {at: ablated(layer)})
        )
    for layer in (3, 10, 16):
        plan = steer(vector, 3.0, layers=[layer], finish="preserve")
        made.append((plan, {f"model.layers.{layer}": kept_long(3.0, layer)}))
    for one, other in ((2, 12), (5, 9)):
        hooks = {f"model.layers.{at}": added(1.0, at) for at in (one, other)}
        made.append((steer(vector, 1.0, layers=[one, other]), hooks))
    entry = Term(vector, 1.0, layers=(0,), site="resid_pre")
    made.append((Plan((entry,)), {"model.embed_tokens": added(1.0, 0)}))
    assert len(made) == 30
    return made


def generate(model, batch):
    out = model.generate(**batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return out[:, batch["input_ids"].shape[1] :]


def with_hooks(model, batch, rows):
    """Each row changed by its own hooks. rows: [{path: change}]"""

    def changing(path):
        def hook(module, args, out):
            changed = out.clone()
            for row, changes in enumerate(rows):
                if path in changes:
                    changed[row] = changes[path](out[row])
            return changed

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(changing(path))
        for path in sorted({path for changes in rows for path in changes})
    ]
    try:
        return generate(model, batch)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_plain_hooks_under_30_plans(prompt, gemma3, vector):
    """A plan a row, in one batch; and an unsteered row."""
    model, tokenizer, _ = gemma3
    chosen = [*plans(vector), (None, {})]
    batch = tokenizer([prompt] * len(chosen), return_tensors="pt")
    wanted = with_hooks(model, batch, [hooks for _, hooks in chosen])
    with attach(model) as handle, handle.use([plan for plan, _ in chosen]):
        got = generate(model, batch)
    assert got.tolist() == wanted.tolist()
    assert len({tuple(row) for row in got.tolist()}) > 5  # the plans do something


def test_prompts_of_different_lengths_with_padding_on_the_left(gemma3, vector):
    model, tokenizer, _ = gemma3
    some, every = PROMPTS[::4], plans(vector)
    chosen = [every[number] for number in (1, 2, 3, 25, 29)]
    padded = tokenizer(some, return_tensors="pt", padding=True, padding_side="left")
    with attach(model) as handle, handle.use([plan for plan, _ in chosen]):
        got = generate(model, padded)
    for row, (prompt, (_, hooks)) in enumerate(zip(some, chosen, strict=True)):
        alone = with_hooks(model, tokenizer([prompt], return_tensors="pt"), [hooks])
        assert got[row].tolist() == alone[0].tolist()


def test_idle_is_stock(gemma3):
    model, tokenizer, _ = gemma3
    ids = tokenizer(PROMPTS[0], return_tensors="pt")

    @torch.no_grad()
    def streams():
        found = []
        hooks = [
            layer.register_forward_hook(lambda module, args, out: found.append(out.clone()))
            for layer in model.model.layers
        ]
        logits = model(**ids).logits
        for hook in hooks:
            hook.remove()
        return found, logits

    wanted, logits = streams()
    with attach(model):
        got, ours = streams()
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()


def test_its_layers_are_read_off_and_proven(gemma3):
    facts = inspect_model(gemma3.model)
    [kind] = facts["kinds"]
    assert (facts["fused"], facts["by"], kind["form"]) == (LAYERS, "proof", "sandwich")
    assert facts["final_norm"] == {"name": "norm", "form": "Gemma3RMSNorm, (1 + w) * x / rms"}


@pytest.mark.parametrize("name", ["sentiment", "formality", "certainty"])
def test_shipped_directions_steer_and_random_ones_do_not(name, gemma3):
    """The effect grows with every dose, and is more than three times what random directions do on average of three: one
    alone may lie along a direction by chance, in so small a model."""
    model, tokenizer, _ = gemma3
    pairs, setting = contrast.load(name), setting_for(model)
    layers = [round(LAYERS * setting.depth)]
    made = extract_pairs(model, tokenizer, pairs.train[::2], name=name, position="mean")
    batch = pair_batch(tokenizer, pairs.held_out[::4])
    with attach(model) as handle:

        def said(vector, dose):
            plan = steer(vector, dose, layers=layers, scale="stream") if dose else None
            return float(log_probability_differences(handle, batch, plan).mean())

        doses = setting.coefficients(full=False)
        effects = [said(made, dose) for dose in doses]
        random = [random_control(made, seed) for seed in range(3)]
        controls = [fmean(said(one, dose) for one in random) for dose in (doses[0], doses[-1])]
    controls.append(effects[2])
    assert doses[2] == 0
    assert all(a < b for a, b in pairwise(effects)), effects
    assert max(effects) - min(effects) >= 3 * (max(controls) - min(controls)), (effects, controls)


def test_a_direction_steers_its_text(gemma3):
    """As ``demo`` shows it."""
    model, tokenizer, _ = gemma3
    pairs = contrast.load("sentiment").train[::2]
    made = extract_pairs(model, tokenizer, pairs, name="sentiment", position="mean")
    with attach(model) as handle:
        rows = generations(
            handle, tokenizer, made, "My day was", 9, coefficients=(-0.05, 0.0, 0.05), tokens=8
        )
    down, plain, up = (row["text"] for row in rows)
    assert down.startswith("a mess.")
    assert plain.startswith("a little different this week.")
    assert up.startswith("filled with so much fun!")


def test_the_broad_study_runs_on_it(gemma3_folder, tmp_path):
    settings = load_preset("gemma3-270m")
    assert settings.broad is not None
    text = Path(str(files("steerfast") / "data/presets/gemma3-270m.toml")).read_text()
    for name, value in {"samples": 6, "tokens": 120, "layers": "[[3], [9]]"}.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
    text = re.sub(r"^coefficients = .*$", "coefficients = [0.05, 0.4]", text, flags=re.M)
    (tmp_path / "small.toml").write_text(text)
    arguments = ["study", "broad", "--preset", str(tmp_path / "small.toml"), "--json"]
    arguments += ["--model", str(gemma3_folder), "--out", str(tmp_path / "study")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "study/results.json").read_text())
    lines = {line["name"]: line["points"] for line in results["lines"]}
    assert list(lines) == ["3", "9", "9 permuted", "9 permuted, norm matched"]
    unsteered, *steered = lines["9"]
    assert unsteered["coefficient"] == 0
    assert min(unsteered["text"]["top1"], unsteered["code"]["top1"]) > 0.2
    assert steered[-1]["code"]["top1"] < 0.7 * unsteered["code"]["top1"]
