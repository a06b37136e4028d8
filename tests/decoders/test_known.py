"""What is known by class, for a model that cannot be run: it is what a run finds."""

from __future__ import annotations

import json

import decoder_checks as checks
import pytest
import torch
import transformers
from accelerate import cpu_offload
from known_decoders import FILE, surveys, written
from tiny_decoders import tiny_decoder

from steerfast import attach
from steerfast.decoders.by_class import class_name
from steerfast.decoders.find import find_decoder

KNOWN = json.loads(FILE.read_text(encoding="utf-8"))
NAMED = ["llama", "gemma2", "olmo2", "gpt_oss", "qwen3_next", "granite", "mamba", "bloom", "gpt2"]


@pytest.mark.parametrize("name", NAMED)
def test_each_entry_is_what_a_run_finds(name):
    for kind, entry in surveys([name]).items():
        assert json.loads(json.dumps(entry)) == KNOWN["decoders"][kind]


@pytest.mark.every_decoder
def test_all_entries_are_what_runs_find():
    assert FILE.read_text(encoding="utf-8") == written(surveys())
    assert KNOWN["transformers"] == transformers.__version__


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "qwen3_next", "granite"])
def test_by_class_alone_it_is_patched_as_by_proof(name):
    model = tiny_decoder(name)
    with attach(model) as handle:
        proven = handle.survey
    with attach(model, prove=False) as handle:
        by_class = handle.survey
    assert by_class.by == "class"
    assert proven.fused == 4
    assert [one.wiring for one in by_class.layers] == [one.wiring for one in proven.layers]
    assert (by_class.norm, by_class.norm_form, by_class.embedded) == (
        proven.norm,
        proven.norm_form,
        proven.embedded,
    )


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_an_offloaded_model_is_fused_by_class_and_right(name):
    plain = checks.case_of(tiny_decoder(name))
    model = tiny_decoder(name)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(weight.device.type == "meta" for weight in model.parameters())
    ids, mask = checks.prompts()
    rows = checks.acts_of(plain, plain.width)
    with checks.hooked(plain.model, plain.layers, rows, mask, plain.reader):
        want = checks.logits(plain.model, ids, mask)
    with attach(model) as handle, handle.use(checks.plans_of(rows)):
        assert (handle.survey.by, handle.survey.fused) == ("class", 4)
        got = checks.logits(model, ids, mask)
    checks.assert_close(got, want, mask)


def test_a_class_that_nobody_has_seen_is_steered_behind_its_layers():
    model = tiny_decoder("llama").to("meta")
    decoder = find_decoder(model).module
    decoder.__class__ = type("MyOwn", (type(decoder),), {})
    assert class_name(type(decoder)) not in KNOWN["decoders"]
    with attach(model) as handle:
        assert handle.survey.fused == 0
        assert "MyOwn is not among the classes that are known" in handle.survey.layers[0].reason
