"""The token ids of a prompt, text or chat messages, with one BOS: a chat template writes it, and most tokenizers add another.

Messages go through the tokenizer's own chat template and are read as ``generate`` would be given them: with the
beginning of an answer behind them, unless the last of them is the assistant's, which is read up to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import IOBase
from pathlib import PurePath
from typing import Any, NamedTuple

from steerfast.plans.fields import wholes

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages


class Read(NamedTuple):
    """ids, and the index of the first token of what was asked about: of a continuation, or of the assistant's answer."""

    ids: list[int]
    first: int


class _Written(NamedTuple):
    """begins: the character where what was asked about begins. templated: all special tokens are in the text."""

    text: str
    begins: int
    templated: bool


def as_prompt(value: object, what: str) -> Prompt:
    """Text as it is, a list of messages as a tuple of dicts; TypeError for anything else. what: its name in the error."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(m, Mapping) for m in value):
        for message in value:
            if not isinstance(message.get("role"), str):
                raise TypeError(
                    f"a message of {what} has no role; messages are written "
                    '{"role": "user", "content": "..."}, got ' + _short(message)
                )
        return tuple(dict(message) for message in value)
    hint = "; one message is a list too: [message]" if isinstance(value, Mapping) else ""
    raise TypeError(f"{what} is text or a list of messages, got {_short(value)}{hint}")


def as_ids(given: object, what: str, model: Any) -> list[int]:
    """Token ids as integers, all of them the model's. what: whose they are. TypeError or ValueError where they are not."""
    ids = list(wholes(f"a token id of {what}", given))
    check_ids(ids, what, model)
    return ids


def check_ids(ids: Sequence[int], what: str, model: Any) -> None:
    """ValueError for a token that the model does not know, if its embeddings say how many it does."""
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if known is not None and ids and not 0 <= min(ids) <= max(ids) < known:
        raise ValueError(
            f"{what} has token ids {min(ids)} to {max(ids)}; this model knows 0 to {known - 1}"
        )


def are_many(given: object) -> bool:
    """Whether it holds what is wanted one by one. Text iterates over its letters, a mapping over its keys, a table over the
    names of its columns, an open file over lines with their ends: none of them is what was meant."""
    alone = isinstance(given, (str, bytes, PurePath, Mapping, IOBase)) or hasattr(given, "columns")
    return isinstance(given, Iterable) and not alone


def token_ids(tokenizer: Any, prompt: Prompt, max_tokens: int | None = None) -> list[int]:
    """The ids of text, as ``tokenizer(text)`` but without a second BOS where it begins with one; or those of messages, as
    ``apply_chat_template`` makes them. max_tokens: cut after so many. ValueError for messages that the template refuses."""
    return read(tokenizer, prompt, max_tokens=max_tokens).ids


def read(
    tokenizer: Any,
    prompt: Prompt,
    continuation: Prompt | None = None,
    max_tokens: int | None = None,
) -> Read:
    """The ids of prompt and continuation, and where the continuation begins: at the first token that reaches beyond the
    prompt. Without one: where the assistant's answer begins that ends the messages, else behind BOS.

    continuation: text, joined to the prompt as it is; or messages that go on with the prompt's. Raises ValueError for
    messages that the tokenizer's template refuses, or a tokenizer without one.
    """
    if not callable(tokenizer):
        raise TypeError(f"the tokenizer is a {type(tokenizer).__name__}, which reads no text")
    text, begins, templated = _written(tokenizer, prompt, continuation)
    how: dict[str, Any] = {"add_special_tokens": False} if templated else {}
    cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
    fast = bool(getattr(tokenizer, "is_fast", False))
    if fast:
        how["return_offsets_mapping"] = True
    found = tokenizer(text, **how, **cut)
    doubled = 0 if templated else _doubled_bos(tokenizer, text, found["input_ids"])
    if doubled and cut:
        found = tokenizer(text, **how, **{**cut, "max_length": cut["max_length"] + 1})
    ids = list(wholes("a token id", found["input_ids"]))[doubled:]
    bos = getattr(tokenizer, "bos_token", None)
    if bos and text.startswith(bos):
        begins = max(begins, len(bos))
    if fast:
        ends = [end for _, end in found["offset_mapping"][doubled:]]
        return Read(ids, next((at for at, end in enumerate(ends) if end > begins), len(ids)))
    head = list(tokenizer(text[:begins], **how)["input_ids"])
    head = head[0 if templated else _doubled_bos(tokenizer, text[:begins], head) :]
    same = 0
    while same < min(len(ids), len(head)) and ids[same] == head[same]:
        same += 1
    return Read(ids, same)


def _written(tokenizer: Any, prompt: Prompt, continuation: Prompt | None) -> _Written:
    """The text that a tokenizer reads."""
    if isinstance(prompt, str) and continuation is None:
        return _Written(prompt, 0, False)
    if isinstance(prompt, str) and isinstance(continuation, str):
        return _Written(prompt + continuation, len(prompt), False)
    if isinstance(prompt, str):
        if prompt:
            raise TypeError(
                "messages cannot go on with a prompt that is text; give the prompt as messages too"
            )
        prompt = ()
    if isinstance(continuation, str):
        text, _ = _templated(tokenizer, prompt)
        return _Written(text + continuation, len(text), True)
    text, begins = _templated(tokenizer, [*prompt, *(continuation or ())])
    return _Written(text, begins, True)


def _templated(tokenizer: Any, messages: Messages) -> tuple[str, int]:
    """Messages as text, and the character where the assistant's answer begins, if they end with one (else 0)."""
    apply = getattr(tokenizer, "apply_chat_template", None)
    if apply is None or getattr(tokenizer, "chat_template", apply) is None:
        raise ValueError(
            "these prompts are messages, but the tokenizer has no chat template; give text, or set "
            "tokenizer.chat_template"
        )
    answered = messages[-1]["role"] == "assistant"
    answer = messages[-1].get("content") if answered else ""
    if not isinstance(answer, str):
        raise ValueError(f"the content of the assistant's message is text, got {_short(answer)}")
    end = {"continue_final_message": True} if answered else {"add_generation_prompt": True}
    try:
        text: str = apply(list(messages), tokenize=False, **end)
    except (
        Exception
    ) as error:  # whatever a template raises: no system message, roles that do not alternate
        raise ValueError(f"the chat template refuses {_short(list(messages))}: {error}") from error
    if not answered:
        return text, 0
    for said in (answer, answer.rstrip(), answer.strip()):
        if text.endswith(said):
            return text, len(text) - len(said)
    raise ValueError(
        f"the chat template changes the assistant's message {_short(answer)}; give the answer as text behind the messages"
    )


def _doubled_bos(tokenizer: Any, text: str, ids: Sequence[int]) -> int:
    """1 where the text begins with the BOS token and the tokenizer has put another in front of it, else 0."""
    bos = getattr(tokenizer, "bos_token", None)
    if not bos or not text.startswith(bos) or len(ids) < 2:
        return 0
    return int(ids[0] == ids[1] == tokenizer.bos_token_id)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
