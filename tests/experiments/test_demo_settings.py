"""Where and how strongly the demo steers: the usual setting, Gemma 3's, and prompts for models that do not chat."""

from __future__ import annotations

import pytest
from plain_streams import chat_tokenizer
from tiny_decoders import tiny_decoder
from tiny_llama import byte_tokenizer

from steerfast.experiments.demo import BEGINNINGS, PROMPTS, Demo, Setting, setting_for
from steerfast.experiments.dose import COEFFICIENTS
from steerfast.models.load import Loaded


def demo(name, tokenizer, layers=6):
    return Demo(Loaded(tiny_decoder(name, layers=layers), tokenizer, name), full=False, quick=True)


@pytest.mark.parametrize(
    ("name", "layer", "push", "doses"),
    [
        ("llama", 2, 0.2, (-0.2, -0.1, 0.0, 0.1, 0.2)),
        ("gpt2", 2, 0.2, (-0.2, -0.1, 0.0, 0.1, 0.2)),
        ("gemma3_text", 3, 0.05, (-0.03, -0.015, 0.0, 0.015, 0.03)),
    ],
)
def test_setting_by_model(name, layer, push, doses):
    run = demo(name, byte_tokenizer())
    assert run.layer == layer
    assert run.setting.push == push
    assert run.setting.coefficients(full=False) == doses


def test_all_doses_go_as_far():
    assert Setting().coefficients(full=True) == COEFFICIENTS
    assert setting_for(tiny_decoder("gemma3_text")).coefficients(full=True) == (
        -0.03, -0.015, -0.0075, 0.0, 0.0075, 0.015, 0.03,
    )  # fmt: skip


def test_prompts_are_asked_where_there_is_a_chat_template_and_gone_on_with_elsewhere():
    assert demo("llama", chat_tokenizer()).prompts == PROMPTS
    assert demo("llama", byte_tokenizer()).prompts == BEGINNINGS
