"""Reading ahead: a server's event loop hands its plans to a thread, and asks vLLM on when they are read.

vLLM makes sampling parameters and requests on the loop that streams everybody's answers. So the endpoints read a
request's plan before they begin, and the engine puts it on the wire for its prompt before it adds the request; what
vLLM calls then (``front.py``) finds both done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any

from steerfast.serving.flight import Flight
from steerfast.serving.vllm.arming import ask
from steerfast.serving.vllm.front import AHEAD, Ahead, Front, fronts
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.wire import FIELD, size_of

_ENDPOINTS = (
    ("chat_completion", "OpenAIServingChat", "create_chat_completion"),
    ("completion", "OpenAIServingCompletion", "create_completion"),
    ("responses", "OpenAIServingResponses", "create_responses"),
)
_REQUEST: ContextVar[object] = ContextVar("steerfast_request", default=None)


def install() -> None:
    """Stand before the endpoints, and before the engine."""
    for kind, name, create in _ENDPOINTS:
        wrap(f"vllm.entrypoints.openai.{kind}.serving:{name}", create, _create)
    wrap("vllm.v1.engine.async_llm:AsyncLLM", "generate", _generate)
    wrap("vllm.v1.engine.async_llm:AsyncLLM", "add_request", _add)


async def _create(original: Any, serving: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    value, here = (getattr(request, "vllm_xargs", None) or {}).get(FIELD), fronts()
    if value is None or len(here) != 1:
        return await original(serving, request, *args, **kwargs)
    _, refusal = await _aside(here[0], value, partial(here[0].read, value))
    token = AHEAD.set(Ahead(value, refusal))
    try:
        return await original(serving, request, *args, **kwargs)
    finally:
        AHEAD.reset(token)


def _generate(original: Any, engine: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
    """AsyncLLM.generate(prompt, sampling_params, ...)."""
    params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
    front = getattr(engine.input_processor, "steerfast", None)
    outputs: AsyncGenerator[Any, None] = original(engine, *args, **kwargs)
    if front is None or (getattr(params, "extra_args", None) or {}).get(FIELD) is None:
        return outputs
    return _counted(front.flight, outputs)


async def _counted(flight: Flight, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """A request's outputs; when they end, however, what it holds of memory is free."""
    request = flight.begin()
    _REQUEST.set(request)  # for the first output vLLM adds it, in this context
    try:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
    finally:
        flight.end(request)


async def _add(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """AsyncLLM.add_request(request_id, prompt, params, ...)."""
    prompt, params = (
        kwargs.get(name, args[place] if len(args) > place else None)
        for place, name in ((1, "prompt"), (2, "params"))
    )
    value = (getattr(params, "extra_args", None) or {}).get(FIELD)
    if value is None:
        return await original(engine, *args, **kwargs)
    await ask(engine)
    front, known = getattr(engine.input_processor, "steerfast", None), _prompt(prompt)
    if front is None or known is None:
        return await original(engine, *args, **kwargs)
    wire, refusal = await _aside(front, value, partial(front.wire, value, *known))
    if wire is not None:
        await front.flight.take(_REQUEST.get(), size_of(wire) * (getattr(params, "n", None) or 1))
    token = AHEAD.set(Ahead(value, refusal, *known, wire))
    try:
        return await original(engine, *args, **kwargs)
    finally:
        AHEAD.reset(token)


async def _aside(front: Front, value: object, work: Callable[[], Any]) -> tuple[Any, Any]:
    """(what it came to, None) or (None, why it is refused)."""
    try:
        return await front.aside.run(len(value) if isinstance(value, str) else 0, work), None
    except ValueError as error:
        return None, error.with_traceback(None)


def _prompt(prompt: Any) -> tuple[int, list[int] | None] | None:
    """(length, tokens) of a prompt that vLLM turns into a request on the loop; None for one that it hands to a thread."""
    if isinstance(prompt, AsyncGenerator):
        return 1, [0]  # what a session begins with
    if not isinstance(prompt, dict) or "type" not in prompt:
        return None
    embeds, tokens = prompt.get("prompt_embeds"), prompt.get("prompt_token_ids")
    if embeds is not None:
        return len(embeds), None
    return None if tokens is None else (len(tokens), tokens)
