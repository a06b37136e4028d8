"""Text and messages as token ids: what ``generate`` is given, with one BOS, and where an answer begins."""

from __future__ import annotations

import pytest
from plain_streams import TEMPLATE, byte_ids, chat_tokenizer, said
from tiny_llama import byte_tokenizer
from tokenizers import processors

from steerfast.models.tokens import as_prompt, read, token_ids

ASKED = [said("system", "Be kind."), said("user", "Hi")]


class Slow:
    """A tokenizer without offsets, as slow ones are."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.bos_token, self.bos_token_id = tokenizer.bos_token, tokenizer.bos_token_id
        self.chat_template = tokenizer.chat_template
        self.apply_chat_template = tokenizer.apply_chat_template

    def __call__(self, text, **how):
        return self.tokenizer(text, **how)


@pytest.fixture(params=[lambda tokenizer: tokenizer, Slow], ids=["fast", "slow"])
def chat(request):
    return request.param(chat_tokenizer())


def ending(tokenizer):
    """Its texts end with </s>, as some tokenizers' do."""
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def test_messages_are_what_generate_is_given(chat):
    wanted = chat.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)
    assert token_ids(chat, ASKED) == wanted["input_ids"]
    assert token_ids(chat, tuple(ASKED)) == byte_ids(
        "<s>[system] Be kind.\n[user] Hi\n[assistant] "
    )


def test_messages_get_no_token_that_the_template_does_not_write():
    """Neither BOS, where only the tokenizer puts one in front, nor the </s> behind its texts."""
    bare = chat_tokenizer(TEMPLATE.replace("{{ bos_token }}", ""))
    assert token_ids(bare, ASKED[1:]) == byte_ids("[user] Hi\n[assistant] ")
    assert read(ending(chat_tokenizer()), ASKED[1:], "Yes").ids == byte_ids(
        "<s>[user] Hi\n[assistant] Yes"
    )


@pytest.mark.parametrize(
    ("prompt", "continuation", "before", "own"),
    [
        ("Say", " hi", "<s>Say", " hi"),
        ("<s>Say", " hi", "<s>Say", " hi"),
        ("", "hi", "<s>", "hi"),
        ("", "<s>hi", "<s>", "hi"),
        (ASKED, "Yes.", "<s>[system] Be kind.\n[user] Hi\n[assistant] ", "Yes."),
        (ASKED, [said("assistant", "Yes.")], "<s>[system] Be kind.\n[user] Hi\n[assistant] ", "Yes."),
        ("", [*ASKED, said("assistant", "Yes")], "<s>[system] Be kind.\n[user] Hi\n[assistant] ", "Yes"),
        ([*ASKED, said("assistant", "I say (")], "A", "<s>[system] Be kind.\n[user] Hi\n[assistant] I say (", "A"),
        ("", [said("user", "Hi")], "<s>", "[user] Hi\n[assistant] "),
        ([*ASKED, said("assistant", "Yes.")], None, "<s>[system] Be kind.\n[user] Hi\n[assistant] ", "Yes."),
        (ASKED[1:], None, "<s>", "[user] Hi\n[assistant] "),
        ("Hi", None, "<s>", "Hi"),
    ],
    ids=range(12),
)  # fmt: skip
def test_where_what_was_asked_about_begins(chat, prompt, continuation, before, own):
    found = read(chat, prompt, continuation)
    assert found.ids == byte_ids(before + own)
    assert found.first == len(byte_ids(before))


def test_a_template_that_trims_answers():
    trims = chat_tokenizer(TEMPLATE.replace("m['content'] }}", "m['content'] | trim }}</s>"))
    found = read(trims, [said("user", "Hi"), said("assistant", "  Yes ")])
    assert found.ids == byte_ids("<s>[user] Hi</s>\n[assistant] Yes")
    assert found.first == len(found.ids) - 3


@pytest.mark.parametrize("text", ["Hi there", "<s>Hi there"])
@pytest.mark.parametrize("most", [1, 4, 9, 100])
def test_a_cut_keeps_as_many_tokens_whoever_writes_bos(chat, text, most):
    assert token_ids(chat, text, max_tokens=most) == byte_ids("<s>Hi there")[:most]


def test_special_tokens_behind_a_text_stay():
    assert read(ending(byte_tokenizer()), "a", "b") == (byte_ids("<s>ab</s>"), 2)
    assert token_ids(ending(byte_tokenizer()), "<s>a") == byte_ids("<s>a</s>")


@pytest.mark.parametrize(
    "tokenizer", [chat_tokenizer(None), lambda text: {}], ids=["none set", "no such method"]
)
def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"has no chat template; give text, or set"):
        token_ids(tokenizer, ASKED)


def test_what_the_template_refuses_is_said():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(ValueError, match=r"refuses .*Be kind.*System role not supported"):
        token_ids(chat_tokenizer(strict + TEMPLATE), ASKED)
    shouts = chat_tokenizer(TEMPLATE.replace("m['content'] }}", "m['content'] | upper }}"))
    with pytest.raises(ValueError, match="template"):
        read(shouts, [*ASKED, said("assistant", "Yes")])
    with pytest.raises(ValueError, match="content of the assistant's message is text, got None"):
        read(chat_tokenizer(), [*ASKED, {"role": "assistant", "tool_calls": []}])
    with pytest.raises(TypeError, match="messages cannot go on with a prompt that is text"):
        read(chat_tokenizer(), "Hi", ASKED)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "got 5"),
        (None, "got None"),
        (b"Hi", "got b'Hi'"),
        ([], r"got \[\]"),
        (["Hi"], r"got \['Hi'\]"),
        ([ASKED], "is text or a list of messages"),
        (said("user", "Hi"), r"one message is a list too: \[message\]"),
        ([{"from": "human", "value": "Hi"}], "has no role; messages are written"),
        ([said("user", "Hi"), {"content": "x"}], "has no role"),
        ([{"role": 5, "content": "x"}], "has no role"),
    ],
    ids=range(10),
)
def test_what_is_no_prompt(value, message):
    with pytest.raises(TypeError, match=message):
        as_prompt(value, "the prompt")
