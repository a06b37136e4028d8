"""The front end: every plan is read, checked and put on the wire before its request reaches the engine.

A bad plan is refused twice over: when sampling parameters are made (early enough for a streaming request to get a real 400),
and again for the engine that will run it, which knows the prompt. On a server's event loop vLLM asks for both; what is said
there was read ahead, beside the loop (``ahead.py``).
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from steerfast.serving import metrics
from steerfast.serving.aside import Aside, on_event_loop
from steerfast.serving.flight import Flight
from steerfast.serving.reader import PlanReader
from steerfast.serving.vllm.arming import is_on, obstacle, settings_of
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.wire import FIELD, WIRE, Prepared, to_wire

logger = logging.getLogger("steerfast")
PARAMETER = f"vllm_xargs.{FIELD}"
_FLIGHT = 256 * 2**20  # bytes of plans that the requests of a server may have in its engine
_SAID = 2000  # letters of a reason
_every: weakref.WeakSet[Front] = weakref.WeakSet()


class Ahead(NamedTuple):
    """A field that was read beside the event loop, and why it is refused, if it is; with a prompt what it came to."""

    value: object
    refusal: ValueError | None
    length: int = -1
    tokens: Sequence[int] | None = None
    wire: dict[str, Any] | None = None

    def of(self, value: object, length: int = -1, tokens: Sequence[int] | None = None) -> bool:
        """Whether this was it."""
        return (self.value, self.length, self.tokens) == (value, length, tokens)


AHEAD: ContextVar[Ahead | None] = ContextVar("steerfast_ahead", default=None)


class Front:
    """The reader of one engine's plans, or why it has none."""

    def __init__(self, config: Any) -> None:
        self.reason = obstacle(config)
        if self.reason is None and not is_on(config):
            self.reason = "its configuration was made without the plugin"
        if self.reason is None:
            text = config.model_config.hf_text_config
            self.reader = PlanReader(settings_of(config), text.num_hidden_layers, text.hidden_size)
        self.aside = Aside("steerfast-reader")
        self.flight = Flight(_FLIGHT)
        self.process = os.getpid()
        _every.add(self)

    def read(self, value: object) -> Prepared | None:
        """The plan; ValueError for a bad one, or where nothing can be steered."""
        if value is None:
            return None
        if self.reason is not None:
            raise ValueError(f"this engine cannot steer: {self.reason}")
        return self.reader.read(value)

    def wire(
        self, value: object, length: int, tokens: Sequence[int] | None
    ) -> dict[str, Any] | None:
        """The plan for a prompt, in its wire form; None where nothing of it ever acts. ValueError for a bad one."""
        prepared = self.read(value)
        return None if prepared is None else to_wire(prepared, length, tokens)


def fronts() -> list[Front]:
    """Of every engine that this process is the front end of; an engine forked from it is none."""
    return [front for front in _every if front.process == os.getpid()]


def install() -> None:
    """Wrap what makes sampling parameters, and what turns a prompt and them into a request."""
    wrap("vllm.sampling_params:SamplingParams", "_verify_args", _verify)
    processor = "vllm.v1.engine.input_processor:InputProcessor"
    wrap(processor, "__init__", _make_front)
    wrap(processor, "process_inputs", _process)
    for kind in ("chat_completion", "completion"):
        module = f"vllm.entrypoints.openai.{kind}.protocol"
        name = "ChatCompletionRequest" if kind == "chat_completion" else "CompletionRequest"
        wrap(f"{module}:{name}", "to_beam_search_params", _refuse_beams)


def _refuse(error: ValueError, value: object) -> Any:
    from vllm.exceptions import VLLMValidationError

    metrics.REFUSED.inc()
    head = value[:80] if isinstance(value, str) else type(value).__name__
    logger.info("steerfast: refused a plan (%r): %s", head, error)
    # What a client sent may be in it: half a letter would make an answer that cannot be sent.
    said = str(error)[:_SAID].encode("utf-8", "backslashreplace").decode()
    return VLLMValidationError(said, parameter=PARAMETER)


def _verify(original: Any, params: Any) -> None:
    original(params)
    extra = params.extra_args
    if not extra:
        return
    for key in extra:
        if str(key).lower().replace("-", "_").startswith(FIELD) and key not in (FIELD, WIRE):
            raise _refuse(ValueError(f"unknown field {key!r}; a plan goes into {FIELD!r}"), key)
    here = fronts()
    if here and WIRE in extra:  # elsewhere it is what a front end has put there
        raise _refuse(ValueError(f"{WIRE} is not for clients; a plan goes into {FIELD!r}"), WIRE)
    value = extra.get(FIELD)
    if value is None or len(here) != 1:
        return
    # Whose model is known before its prompt is. On an event loop a plan that was not read ahead waits for the engine.
    ahead = AHEAD.get()
    try:
        if ahead is not None and ahead.of(value):
            if ahead.refusal is not None:
                raise ahead.refusal
        elif not on_event_loop():
            here[0].read(value)
    except ValueError as error:
        raise _refuse(error, value) from error


def _make_front(original: Any, processor: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    processor.steerfast = Front(vllm_config)
    original(processor, vllm_config, *args, **kwargs)


def _process(original: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    """The request, its plan on the wire. Its parameters are a copy; their extra arguments may be the client's own dict."""
    request = original(processor, *args, **kwargs)
    params = request.sampling_params
    extra = params.extra_args if params is not None else None
    if not extra or not extra.keys() & {FIELD, WIRE}:
        return request
    params.extra_args = {key: value for key, value in extra.items() if key not in (FIELD, WIRE)}
    try:
        if WIRE in extra:
            raise ValueError(f"{WIRE} is not for clients; a plan goes into {FIELD!r}")
        if request.resumable:
            raise ValueError("a session whose prompt goes on arriving cannot be steered")
        wire = _wire(processor.steerfast, extra[FIELD], request)
    except ValueError as error:
        raise _refuse(error, extra.get(FIELD)) from error
    if wire is None:
        return request
    params.extra_args[WIRE] = wire
    metrics.STEERED.inc()
    return request


def _wire(front: Front, value: object, request: Any) -> dict[str, Any] | None:
    """As it was read ahead, else now."""
    tokens = request.prompt_token_ids if request.prompt_embeds is None else None
    length = len(tokens) if tokens is not None else len(request.prompt_embeds)
    ahead = AHEAD.get()
    if ahead is None or not ahead.of(value, length, tokens):
        return front.wire(value, length, tokens)
    if ahead.refusal is not None:
        raise ahead.refusal
    return ahead.wire


def _refuse_beams(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Beam search makes new requests of its own, and would leave the plan behind."""
    given = getattr(request, "vllm_xargs", None) or {}
    if FIELD in given:
        raise _refuse(ValueError("beam search cannot be steered here; sample instead"), "beams")
    return original(request, *args, **kwargs)
