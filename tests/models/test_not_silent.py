"""Ways to be silently wrong: each is an error, or right."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from steerfast import (
    Plan,
    SteerfastError,
    SteeringVector,
    Term,
    attach,
    extract_pairs,
    load_plan,
    load_vector,
    ops,
    save_plan,
    save_vector,
    steer,
)
from steerfast.cli import app
from steerfast.extraction.contrast import ContrastPair
from steerfast.io import plan_from_json


def vector(layers=4, size=64, **norms):
    generator = torch.Generator().manual_seed(3)
    directions = {layer: torch.randn(size, generator=generator) for layer in range(layers)}
    return SteeringVector(
        "joy", directions, norms or {layer: 2.0 + layer for layer in range(layers)}
    )


IDS = torch.arange(27).view(3, 9)


@torch.no_grad()
def test_a_layer_called_by_itself_never_reads_an_old_route(tiny):
    model = tiny.model
    x = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(0))
    rotary = model.model.rotary_emb(x, position_ids=torch.arange(9)[None])
    layer = model.model.layers[1]
    stock = layer(x, position_embeddings=rotary)
    with attach(model) as handle:
        with handle.use(steer(vector(), 5.0, layers=[1])):
            model(IDS)
        torch.testing.assert_close(layer(x, position_embeddings=rotary), stock)
        model(IDS)
        with (
            handle.use(steer(vector(), 5.0, layers=[1])),
            pytest.raises(SteerfastError, match="called by itself"),
        ):
            layer(x, position_embeddings=rotary)


@pytest.mark.parametrize("select", ["prompt", "generated"])
def test_only_the_decoder_attached(tiny, select):
    model = tiny.model
    plan = steer(vector(), 5.0, layers=[1], select=select)
    with (
        attach(model.model) as handle,
        handle.use(plan),
        pytest.raises(SteerfastError, match="prompt_lengths"),
    ):
        model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=1)
    with attach(model.model) as handle, handle.use(steer(vector(), 5.0, layers=[1])):
        got = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=1)
    with attach(model) as handle, handle.use(steer(vector(), 5.0, layers=[1])):
        assert torch.equal(
            got, model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=1)
        )


def test_a_use_that_has_ended_cannot_be_entered_again(tiny):
    with attach(tiny.model) as handle:
        use = handle.use(steer(vector()))
        with use:
            pass
        with pytest.raises(SteerfastError, match="has ended"), use:
            pass


def test_forward_mode_derivatives(tiny):
    model = tiny.model.requires_grad_(False)
    embeds = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    tangent = torch.ones_like(embeds)

    def logits(e):
        return model(inputs_embeds=e, use_cache=False).logits

    model.set_attn_implementation("eager")
    _, stock = torch.func.jvp(logits, (embeds,), (tangent,))
    with attach(model):
        _, ours = torch.func.jvp(logits, (embeds,), (tangent,))
    assert stock.abs().max() > 0
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
    x, weight = torch.randn(4, 64), torch.ones(64)
    _, (along, _) = torch.func.jvp(lambda t: ops.add_rms_norm(t, x, weight, 1e-5), (x,), (x,))
    assert torch.equal(along, x)


def test_prompt_learning_is_refused_and_lora_is_not(tiny):
    peft = pytest.importorskip("peft")
    learned = peft.get_peft_model(
        tiny.model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(SteerfastError, match="PromptTuningConfig"):
        attach(learned)
    assert "forward" not in tiny.model.model.layers[0].__dict__


def test_text_is_not_markup(tiny_folder, tmp_path):
    """Brackets in prompts, generated text, paths and errors are text."""
    path = save_vector(vector(), tmp_path / "joy.safetensors")
    command = [
        "generate",
        "x = y[0] [/INST] [red]",
        "-v",
        f"{path}:1:1",
        "-m",
        str(tiny_folder),
        "--tokens",
        "3",
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "x = y[0] [/INST] [red]" in result.output
    assert "3 rows" not in result.output


def test_the_commands_report_covers_the_prompt(tiny_folder, tmp_path):
    path = save_vector(vector(), tmp_path / "joy.safetensors")
    command = [
        "generate",
        "hello",
        "-v",
        f"{path}:1:1",
        "-m",
        str(tiny_folder),
        "--tokens",
        "3",
        "--json",
    ]
    for select, rows in (("prompt", 5), ("generated", 2), ("all", 7)):
        result = CliRunner().invoke(app, [*command, "--select", select], catch_exceptions=False)
        assert json.loads(result.stdout.splitlines()[-1])["steered_rows"] == rows


def test_stream_scale_takes_the_norm_of_the_site():
    from steerfast.plans.sites import site_index
    from steerfast.table.lowering import lower

    (phase,) = lower(Plan((Term(vector(), 1.0, (2,), "stream", "resid_pre"),))).phases
    delta = phase.sites[site_index("resid_post", 1)].delta
    assert float(delta.norm()) == pytest.approx(3.0)  # the norm at layer 1's output
    with pytest.raises(ValueError, match="resid_pre of layer 0"):
        Term(vector(), 1.0, (0,), "stream", "resid_pre")


def test_layers_are_checked_before_the_work(tiny):
    pairs = [ContrastPair("a", " b", " c")]
    with pytest.raises(ValueError, match=r"cannot keep layer 7: this model has layers 0\.\.3"):
        extract_pairs(tiny.model, tiny.tokenizer, pairs, name="v", layers=[7])


def test_extracting_from_a_steered_model_warns(tiny):
    pairs = [ContrastPair("a", " b", " c")]
    with (
        attach(tiny.model) as handle,
        handle.use(steer(vector())),
        pytest.warns(UserWarning, match="steered model"),
    ):
        extract_pairs(tiny.model, tiny.tokenizer, pairs, name="v")


def test_plans_by_name_round_trip_beside_their_vectors(tmp_path):
    save_vector(vector(), tmp_path / "joy.safetensors")
    plan = steer(vector(), 2.0)
    assert load_plan(save_plan(plan, tmp_path / "plan.json", inline=False)) == plan
    with pytest.raises(ValueError, match=r"coefficient of .joy. is a number"):
        plan_from_json('{"terms": [{"vector": "joy", "coefficient": "2"}]}', {"joy": vector()})


def test_a_vector_cannot_be_changed_through_what_it_hands_out():
    made = vector()
    digest = made.digest
    made.at(1).zero_()
    assert made.digest == digest


def test_a_file_with_other_tensors_names_itself(tmp_path):
    from safetensors.torch import save_file

    about = json.dumps({"format": "steerfast.vector/1", "name": "v"})
    save_file({"mean": torch.ones(2)}, tmp_path / "odd.safetensors", metadata={"steerfast": about})
    with pytest.raises(ValueError, match=r"odd\.safetensors does not hold a valid vector"):
        load_vector(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": None}, r"got dict; give \[plans\[name\]"),
        ([vector()], "got SteeringVector; a plan is made"),
    ],
)
def test_what_is_no_list_of_plans(tiny, given, said):
    with attach(tiny.model) as handle, pytest.raises(TypeError, match=said):
        handle.use(given)
