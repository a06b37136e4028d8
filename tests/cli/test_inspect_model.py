"""``steerfast inspect-model`` and ``env --model``: wirings by kind of layer, sites, norms, and how they are known."""

from __future__ import annotations

import json

import pytest
from tiny_decoders import tiny_decoder
from tiny_llama import byte_tokenizer
from typer.testing import CliRunner

from steerfast import SteerfastError
from steerfast.cli import app
from steerfast.models.inspection import inspect_model

runner = CliRunner()


def run(*arguments):
    result = runner.invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def saved(folder, name, **overrides):
    model = tiny_decoder(name, **overrides)
    model.save_pretrained(folder / name)
    byte_tokenizer().save_pretrained(folder / name)
    return folder / name


def test_gemma_as_text_and_as_json(tmp_path):
    folder = saved(tmp_path, "gemma3_text")
    result = run("inspect-model", folder, "--dtype", "float32", "--json")
    facts = json.loads(result.stdout)
    [kind] = facts["kinds"]
    assert (facts["name"], facts["decoder"], facts["path"]) == (
        "gemma3_text",
        "Gemma3TextModel",
        "model",
    )
    assert (facts["layers"], facts["fused"], facts["by"]) == (4, 4, "proof")
    assert kind["layers"] == [0, 1, 2, 3]
    assert kind["form"] == "sandwich"
    assert kind["formula"] == (
        "h = h + post_attention_layernorm(self_attn(input_layernorm(h))); "
        "h = h + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(h)))"
    )
    assert kind["sites"] == ["resid_pre", "resid_mid", "resid_post"]
    assert set(kind["norms"].values()) == {"Gemma3RMSNorm, (1 + w) * x / rms"}
    assert facts["final_norm"] == {"name": "norm", "form": "Gemma3RMSNorm, (1 + w) * x / rms"}
    assert facts["embedded"] is True
    shown = run("inspect-model", folder, "--dtype", "float32").stdout
    for line in (
        "gemma3_text: Gemma3TextModel in Gemma3ForCausalLM, 4 layers, D = 64",
        "4 of 4 layers fused, proven on a few tokens, to the bit",
        "layers 0..3: Gemma3DecoderLayer",
        "    h = h + post_attention_layernorm(self_attn(input_layernorm(h)))",
        "  sites: resid_pre, resid_mid, resid_post",
        "final norm: norm: Gemma3RMSNorm, (1 + w) * x / rms",
    ):
        assert line in shown.splitlines()


def test_one_step_a_layer_has_no_middle_and_other_norms_run_by_themselves():
    facts = inspect_model(tiny_decoder("cohere"))
    [kind] = facts["kinds"]
    assert "resid_mid" not in kind["sites"]
    for form in kind["norms"].values():
        assert form == "CohereLayerNorm, its own forward"


def test_kinds_of_layer_are_told_apart():
    facts = inspect_model(tiny_decoder("jamba"))
    assert sorted(number for kind in facts["kinds"] for number in kind["layers"]) == [0, 1, 2, 3]
    bodies = {kind["formula"] for kind in facts["kinds"]}
    assert len(bodies) == len(facts["kinds"]) >= 2
    assert any("mamba(" in formula for formula in bodies)
    assert any("self_attn(" in formula for formula in bodies)


def test_without_weights_it_goes_by_class(tmp_path):
    folder = saved(tmp_path, "llama")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    facts = json.loads(run("inspect-model", folder, "--no-weights", "--json").stdout)
    assert facts["by"] == "class"
    assert facts["layers"] == 4
    with pytest.raises(SteerfastError, match="cannot read the configuration of"):
        run("inspect-model", tmp_path / "absent", "--no-weights")


def test_env_says_how_a_model_would_be_steered(tiny_folder):
    result = run("env", "--model", tiny_folder, "--dtype", "float32", "--json")
    assert json.loads(result.stdout)["model"] == {
        "name": "tiny-llama",
        "decoder": "LlamaModel",
        "layers": 4,
        "fused": 4,
        "by": "proof",
        "summary": ["layers 0..3: pre-norm, fused"],
    }
    assert "tiny-llama: LlamaModel, by proof: layers 0..3: pre-norm, fused" in result.stderr


def test_looking_leaves_the_model_as_it_was(tiny):
    before = {name: module.__dict__.get("forward") for name, module in tiny.model.named_modules()}
    inspect_model(tiny.model)
    after = {name: module.__dict__.get("forward") for name, module in tiny.model.named_modules()}
    assert after == before
