"""What ``use`` warns of: another model, known by its weights; a dose beyond the stream's norm. And what it does not."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_llama import byte_tokenizer, tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM

from steerfast import (
    Gate,
    Plan,
    Schedule,
    SteeringVector,
    Term,
    attach,
    contrast,
    extract_pairs,
    steer,
)
from steerfast.models.fingerprint import fingerprint, same_weights

PAIRS = contrast.load("sentiment").train[:2]
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=258)


def extracted(model):
    return extract_pairs(model, byte_tokenizer(), PAIRS, name="joy", position="mean")


def warned(model, plans):
    """What ``use`` says."""
    with warnings.catch_warnings(record=True) as said, attach(model) as handle:
        warnings.simplefilter("always")
        with handle.use(plans):
            pass
    assert all(one.filename == __file__ for one in said)
    return [str(one.message) for one in said]


def from_folder(model, folder, dtype="float32"):
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# -- another model


def test_a_model_is_the_same_in_any_folder_and_precision(model, tmp_path):
    plan = steer(extracted(from_folder(model, tmp_path / "here")), 0.1, layers=1)
    for name, dtype in (("here", "float32"), ("there", "float32"), ("rounded", "bfloat16")):
        assert warned(from_folder(model, tmp_path / name, dtype), plan) == []
    rounded = extracted(from_folder(model, tmp_path / "rounded", "bfloat16"))
    assert rounded.provenance["fingerprint"] == plan.terms[0].vector.provenance["fingerprint"]
    assert warned(from_folder(model, tmp_path / "there"), steer(rounded, 0.1, layers=1)) == []


def test_other_weights_in_the_same_folder_are_another_model(model, tmp_path):
    plan = steer(extracted(from_folder(model, tmp_path / "here")), 0.1, layers=1)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.layers[3].mlp.down_proj.weight.mul_(1.01)
    (said,) = warned(from_folder(tuned, tmp_path / "here"), plan)
    assert "vector 'joy' was extracted from 'here', whose weights are not those of this" in said


@pytest.mark.parametrize("where", ["gate", "read", "second"])
def test_every_vector_of_a_plan_is_looked_at(where, model):
    mine = SteeringVector("mine", {1: torch.ones(64)})
    other = SteeringVector("other", {1: torch.randn(64)}, {}, {"fingerprint": "bfloat16:0"})
    fields = {
        "gate": {"gate": Gate("hard", other)},
        "read": {"operator": "map", "read": other},
        "second": {"operator": "rotate_by", "second": other, "angle": 0.1},
    }
    (said,) = warned(model, steer(mine, **fields[where]))
    assert "vector 'other' was extracted from" in said


def test_half_precision_is_compared_with_itself_and_float32(model):
    half = copy.deepcopy(model).to(FLOAT16)
    assert fingerprint(half).startswith("float16:")
    assert fingerprint(half) == fingerprint(model, "float16")
    assert same_weights(fingerprint(half), model) is True
    assert same_weights(fingerprint(half), copy.deepcopy(model).to(BFLOAT16)) is None
    assert same_weights(fingerprint(model), half) is None
    assert fingerprint(copy.deepcopy(model).double()) == fingerprint(model)


def test_what_stands_beside_the_weights_does_not_count(model):
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    before = fingerprint(model)
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(300)
    assert fingerprint(resized) == before
    adapted = peft.get_peft_model(
        copy.deepcopy(model),
        peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    )
    assert fingerprint(adapted) == before
    assert fingerprint(adapted.merge_and_unload()) != before  # its weights are others now
    with attach(model):
        assert fingerprint(model) == before


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.ones(128, 8, dtype=torch.int32))


@pytest.mark.parametrize("change", ["meta", "integers", "one of both", "left out"])
def test_where_weights_cannot_tell_the_name_does(change, model):
    odd = copy.deepcopy(model)
    proj = odd.model.layers[2].mlp.up_proj
    if change == "meta":
        proj.to("meta")
    elif change == "integers":
        proj.weight = nn.Parameter(torch.ones(128, 64, dtype=torch.int8), requires_grad=False)
    elif change == "one of both":
        odd.to(BFLOAT16)
        proj.to(FLOAT16)
    else:  # quantised by a library that keeps no weight of that name
        odd.model.layers[2].mlp.up_proj = Packed()
    assert fingerprint(odd) is None
    assert same_weights(fingerprint(model), odd) is None


def test_names_tell_where_one_side_has_no_fingerprint(model):
    vector = SteeringVector("mine", {1: torch.ones(64)}, {}, {"model": "a/Llama-There"})
    other = copy.deepcopy(model)
    for name, expected in (("b/Llama-There", 0), ("b/Llama-Here", 1), ("", 0)):
        other.config._name_or_path = name
        assert len(warned(other, steer(vector, 0.1))) == expected


@pytest.mark.model
def test_a_checkpoint_of_the_model_is_the_model(smollm2, tmp_path):
    """README's flow: a vector from SmolLM2 as it comes, used on what ``checkpoint smollm2`` wrote."""
    renamed = copy.deepcopy(smollm2.model)
    renamed.config._name_or_path = "smollm2"
    joy = SteeringVector(
        "joy", {10: torch.ones(576)}, {},
        {"model": "SmolLM2-135M-Instruct", "fingerprint": fingerprint(smollm2.model.to(torch.float32))},
    )  # fmt: skip
    assert warned(renamed, steer(joy, 0.1)) == []
    assert warned(renamed, steer(replace(joy, provenance={"model": "SmolLM2-135M-Instruct"}), 0.1))


# -- the dose


def joy(layers=4):
    """Length 2 * (layer + 1) in a stream of norm 4."""
    directions = {layer: torch.full((64,), (layer + 1) / 4) for layer in range(layers)}
    return SteeringVector("joy", directions, dict.fromkeys(range(layers), 4.0))


GENERATED, PROMPT = "generated", "prompt"
BARE = replace(joy(), stream_norms={})
DOSES = {
    "one layer": (steer(joy(), 1.0, layers=2, scale="stream"), None),
    "one layer more": (steer(joy(), -1.01, layers=2, scale="stream"), "1.01 .* at resid_post.2.;"),
    "all layers": (steer(joy(), 0.3, scale="stream"), "1.2 .* at 4 sites together"),
    "all layers, less": (steer(joy(), 0.25, scale="stream"), None),
    "raw": (steer(joy(), 1.0), "5 .* at 4 sites"),  # (2 + 4 + 6 + 8) / 4
    "raw, one layer": (steer(joy(), 1.0, layers=0), None),
    "no norms": (steer(BARE, 100.0), None),
    "opposed": (Plan((Term(joy(), 3.0, 1, "stream"), Term(joy(), -2.5, 1, "stream"))), None),
    "not at once": (
        Plan(tuple(Term(joy(), 0.9, 1, "stream", select=one) for one in (PROMPT, GENERATED))),
        None,
    ),
    "at once": (Plan(tuple(Term(joy(), 0.9, at, "stream") for at in (1, 2))), "1.8 .* at 2 sites"),
    "gain": (steer(joy(), 0.5, layers=1, scale="stream", schedule=Schedule(((0, -4.0),))), "adds 2 "),
    "removed": (steer(joy(), operator="ablate"), None),
    "clamped": (steer(joy(), operator="clamp", target=3.0), "adds 3 .* 4 sites"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOSES)
def test_a_dose_beyond_the_streams_norm_is_warned_of(name, model):
    plan, message = DOSES[name]
    if message is None:
        assert warned(model, plan) == []
        return
    with attach(model) as handle:
        for _ in range(2):  # each time: what was said once scrolls away
            with pytest.warns(UserWarning, match=message), handle.use([None, plan]):
                pass
        with handle.use(None) as use, pytest.warns(UserWarning, match=message):
            use.change(plan)


def test_the_warning_names_a_layer_to_start_with(model):
    (said,) = warned(model, steer(joy(), 1.0))
    assert said.endswith("Lower the coefficient, or name fewer layers: layers=[1] is a start")


def test_a_warning_that_is_an_error_leaves_nothing_in_use(model):
    with attach(model) as handle, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="times the stream's typical norm"):
            handle.use([steer(joy(), 0.1, layers=1), steer(joy(), 1.0)])
        assert handle.table.slots_in_use == 0


@pytest.mark.parametrize(
    ("layers", "depth", "wanted"),
    [(range(30), 30, 10), (range(32), 32, 11), ((8, 9), 30, 9), ((12, 20), 30, 12), ((10, 11), 0, 10), ((3, 5), 12, 3),
     ((0,), 1, 0)],
)  # fmt: skip
def test_the_suggested_layer_is_a_third_of_the_depth(layers, depth, wanted):
    vector = SteeringVector(
        "v", dict.fromkeys(layers, torch.ones(4)), dict.fromkeys(range(depth), 1.0)
    )
    assert vector.suggested_layer == wanted
