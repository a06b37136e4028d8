"""``generate_batch``: prompts, or (prompt, plan, sampling), in, completions in the same order out.

Requests run in transformers' continuous batching, which packs prompts and steps of all of them into one forward.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any, NamedTuple

from steerfast.errors import SteerfastError, TableFullError
from steerfast.io.strict import LARGEST
from steerfast.models import Handle, attach
from steerfast.models.tokens import Messages, are_many, as_ids, as_prompt, token_ids
from steerfast.plans.plan import Plan
from steerfast.routing.packed import along
from steerfast.serving.cache_size import Length, sized_config
from steerfast.serving.sampling import MAX_NEW_TOKENS, checked
from steerfast.table.lowering import Lowered

_PER_REQUEST = ("max_new_tokens", "eos_token_id")
_WAIT = 1.0  # seconds between looks at an engine that says nothing


class Request(NamedTuple):
    """prompt: text or chat messages (with a tokenizer), or token ids. plan: what steers it, or None. sampling: max_new_tokens,
    eos_token_id, do_sample, temperature, top_k, top_p, seed; as ``generate`` takes them, by default greedy and at most
    128 tokens."""

    prompt: str | Messages | Sequence[int]
    plan: Plan | None = None
    sampling: Mapping[str, Any] = {}


class Completion(NamedTuple):
    """tokens: what was generated, without the prompt. text: decoded, where there is a tokenizer that does."""

    tokens: list[int]
    text: str | None


def generate_batch(
    model: Any,
    requests: Iterable[Request | tuple[Any, ...] | str | Messages | Sequence[int]],
    *,
    tokenizer: Any = None,
    progress: bool = True,
    config: Any = None,
) -> list[Completion]:
    """Answer many requests, each steered by a plan of its own, in continuous batching.

    model: a Handle, or a model of transformers (attached for the call if it is not). requests: ``Request``s, tuples
    (prompt, plan, sampling), of which the last two may be left out, or prompts alone: text, a list of chat messages (which
    go through the tokenizer's template), a list of token ids. progress: a bar on stderr. Returns one Completion
    per request, in order.

    config: a ContinuousBatchingConfig, used as it is. By default the KV cache is sized by the requests: room for as many
    of the longest as 16,384 tokens hold (131,072 on a GPU), for one at least, and for no more than half of the free
    memory holds; the others wait.

    More plans than the table has room for wait their turn. Raises TypeError or ValueError for a bad request, and
    TableFullError for a plan that the table has no room for at all, with the request's number and before anything
    runs; SteerfastError if the engine fails one.
    """
    asked = _requests(requests)
    if not asked:
        return []
    with ExitStack() as stack:
        handle = model if isinstance(model, Handle) else stack.enter_context(attach(model))
        prompts = [
            _token_ids(one, number, tokenizer, handle.model) for number, one in enumerate(asked)
        ]
        seen = _Seen({}, set())  # many requests share a plan
        asked = [
            _checked(one, number, handle, prompts[number], seen) for number, one in enumerate(asked)
        ]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, one in enumerate(asked):
            groups.setdefault(_shared_sampling(one), []).append(number)
        bar = stack.enter_context(_bar(len(asked), progress))
        outputs: dict[int, list[int]] = {}
        for shared, numbers in groups.items():
            outputs.update(_run(handle, dict(shared), numbers, asked, prompts, config, bar))
    decode = getattr(tokenizer, "decode", lambda tokens: None)
    return [Completion(outputs[n], decode(outputs[n])) for n in range(len(asked))]


def _requests(given: Iterable[Any]) -> list[Request]:
    """Whatever was asked as requests. TypeError for one where many are wanted, and for what is no request."""
    if isinstance(given, Request) or not are_many(given):
        raise TypeError(
            f"generate_batch takes an iterable of requests, got {type(given).__name__}; one request is [request]"
        )
    asked = []
    for number, one in enumerate(given):
        if isinstance(one, Mapping):
            raise TypeError(
                f"request {number} is {type(one).__name__} {str(one)[:60]!r}; one request of messages is a list of them, "
                "anything else is Request(prompt, plan, sampling)"
            )
        # A tuple of numbers is a prompt too: no prompt is a number.
        if not isinstance(one, tuple) or isinstance(next(iter(one), None), Integral):
            one = Request(one)
        if not 1 <= len(one) <= len(Request._fields):
            raise TypeError(
                f"request {number} is a tuple of {len(one)}; wanted (prompt, plan, sampling)"
            )
        asked.append(Request(*one))
    return asked


def _run(
    handle: Handle,
    sampling: dict[str, Any],
    numbers: list[int],
    asked: list[Request],
    prompts: list[list[int]],
    config: Any,
    bar: Any,
) -> dict[int, list[int]]:
    """One engine for requests that are sampled alike."""
    from transformers import GenerationConfig

    model = handle.model
    generation = GenerationConfig(
        **{
            "do_sample": False,
            "eos_token_id": model.generation_config.eos_token_id,
            "pad_token_id": model.generation_config.pad_token_id,
            **{name: value for name, value in sampling.items() if name != "seed"},
        }
    )
    if config is None:
        config = sized_config(
            model, [Length(len(prompts[number]), _most_new(asked[number])) for number in numbers]
        )
    else:
        config = copy.copy(config)
    if sampling.get("seed") is not None:
        config.seed = sampling["seed"]
    waiting = deque(numbers)
    outputs: dict[int, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config, warmup=False
    ) as manager:
        while len(outputs) < len(numbers):
            while waiting and _added(manager, waiting[0], asked, prompts, len(outputs)):
                waiting.popleft()
            result = manager.get_result(timeout=_WAIT)
            if result is None:
                if not manager.is_running():
                    raise SteerfastError(
                        f"the engine stopped with {len(numbers) - len(outputs)} requests unanswered; "
                        f"{manager.background_thread_status.fatal_error or 'its log says why'}"
                    )
                continue
            if not result.is_finished():
                continue
            number = int(result.request_id)
            if result.error is not None:
                raise SteerfastError(f"request {number} failed: {result.error}")
            outputs[number] = list(result.generated_tokens)
            bar.update(1)
    return outputs


def _added(
    manager: Any, number: int, asked: list[Request], prompts: list[list[int]], answered: int
) -> bool:
    """Whether the engine took a request; if not, the plans of those before it fill the table."""
    one = asked[number]
    try:
        added = manager.add_request(
            prompts[number],
            str(number),
            plan=one.plan,
            max_new_tokens=_most_new(one),
            eos_token_id=one.sampling.get("eos_token_id"),
        )
    except TableFullError:
        if len(manager.steerfast_requests) == 0:
            raise  # nobody will make room
        return False
    if added is None:
        raise SteerfastError(
            f"the engine takes no request {number}: {manager.background_thread_status.fatal_error}"
        )
    return True


def _most_new(request: Request) -> int:
    given = request.sampling.get("max_new_tokens")
    return MAX_NEW_TOKENS if given is None else given


def _token_ids(request: Request, number: int, tokenizer: Any, model: Any) -> list[int]:
    prompt: Any = request.prompt
    written = isinstance(prompt, str) or (
        isinstance(prompt, (list, tuple)) and any(isinstance(one, Mapping) for one in prompt)
    )
    if written and tokenizer is None:
        kind = "text" if isinstance(prompt, str) else "messages"
        raise ValueError(f"request {number} is {kind}; give tokenizer=, or token ids")
    if written:
        try:
            prompt = token_ids(tokenizer, as_prompt(prompt, "the prompt"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"request {number}: {error}") from error
    try:
        ids = as_ids(prompt, f"request {number}", model)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not ids:
        raise ValueError(f"request {number} has an empty prompt")
    return ids


class _Seen(NamedTuple):
    """lowered: each plan by its digest. fits: the parts of them that the table has room for, by their keys."""

    lowered: dict[str, Lowered]
    fits: set[str]


def _checked(request: Request, number: int, handle: Handle, ids: list[int], seen: _Seen) -> Request:
    """The request, its sampling as plain values. TypeError or ValueError, with its number, for what cannot run;
    TableFullError for a plan that this table never has room for."""
    positions = getattr(handle.model.config.get_text_config(), "max_position_embeddings", None)
    most_new = LARGEST if positions is None else max(0, positions - len(ids))
    plan = request.plan
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(
            f"the plan of request {number} is a {type(plan).__name__}; wanted a Plan or None "
            "(steerfast.load_plan reads one from a file)"
        )
    vocabulary = getattr(handle.model.get_input_embeddings(), "num_embeddings", LARGEST)
    sampling = checked(request.sampling, f"request {number}", most_new, vocabulary)
    try:
        if plan is not None:
            if plan.digest not in seen.lowered:
                seen.lowered[plan.digest] = handle.table.lowered(plan)
            part = along(seen.lowered[plan.digest], ids)
            if part.key(plan) not in seen.fits:
                handle.table.check_room(plan, part)
                seen.fits.add(part.key(plan))
    except (ValueError, TableFullError) as error:
        raise type(error)(f"request {number}: {error}") from error
    return request._replace(sampling=sampling)


def _shared_sampling(request: Request) -> tuple[Any, ...]:
    """What requests of one engine have in common."""
    return tuple(
        sorted((key, value) for key, value in request.sampling.items() if key not in _PER_REQUEST)
    )


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not shown, unit="request")
