"""``generate``, patched: it says what a generation begins with, and prepares the route of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from steerfast.decoders.caches import cache_of, tokens_in
from steerfast.errors import SteerfastError
from steerfast.models.generation import Generation
from steerfast.models.stand_in import StandIn
from steerfast.routing.in_use import InUse
from steerfast.routing.positions import check_mask


class SteeredGenerate(StandIn):
    """Stands in for ``model.generate``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared
        given = args[0] if args else kwargs.get("inputs")
        ids = given if given is not None else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        prompt = ids if ids is not None else embeds
        if prompt is None:  # transformers starts from the BOS token
            batch, width = 1, 1
        else:
            batch, width = prompt.shape[0], prompt.shape[1]
        mask = kwargs.get("attention_mask")
        in_use = shared.in_use()
        if mask is not None and embeds is None and in_use.active:
            known = cache_of(kwargs) is None  # else the mask is of the cache too
            check_mask(mask, batch, width, width if known else None)
        flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        if flat is not None:  # covers a given cache, which the prompt may not
            width = flat.shape[1]
        in_use.check_batch(batch, exact=True, what="generate got {} prompts")
        _check_healing(in_use, kwargs, self.original)
        if mask is None:
            flat = _inferred(ids, kwargs, self.original)
        with shared.generating(Generation(ids, flat, width)):
            return self.original(*args, **kwargs)


def _setting(name: str, kwargs: dict[str, Any], generate: Callable[..., Any]) -> Any:
    """A setting of a call of ``generate``: an argument, else of the configuration given, else of the model's."""
    own = getattr(getattr(generate, "__self__", None), "generation_config", None)
    settings = kwargs.get("generation_config") or own
    return kwargs.get(name, getattr(settings, name, None))


def _inferred(
    ids: Tensor | None, kwargs: dict[str, Any], generate: Callable[..., Any]
) -> Tensor | None:
    """The mask that ``generate`` will infer where it was given none: what is not the pad token, if that ends no text."""
    pad = _setting("pad_token_id", kwargs, generate)
    ends = _setting("eos_token_id", kwargs, generate)
    if ids is None or pad is None or cache_of(kwargs) is not None:
        return None
    if pad in (ends if isinstance(ends, (list, tuple)) else [ends]) or not (ids == pad).any():
        return None
    mask: Tensor = (ids != pad).long()
    return mask


def _check_healing(in_use: InUse, kwargs: dict[str, Any], generate: Callable[..., Any]) -> None:
    """SteerfastError where ``generate`` is to change the prompt's tokens before it reads them, and a plan counts them."""
    heals = _setting("token_healing", kwargs, generate)
    if heals and (in_use.by_position or not in_use.single):
        raise SteerfastError(
            "token_healing changes the end of each prompt in generations of their own, so that neither prompts nor rows "
            "are those that plans were given for; use one plan that selects 'all' tokens, or switch it off"
        )


class SteeredPrepare(StandIn):
    """Stands in for ``model.prepare_inputs_for_generation``."""

    def __call__(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = self.original(input_ids, *args, **kwargs)
        generation = self.shared.state.generation
        if generation is not None:
            tokens = prepared.get("input_ids")
            tokens = prepared["inputs_embeds"] if tokens is None else tokens
            batch, length = map(int, tokens.shape[:2])
            mask = kwargs.get("attention_mask")  # before a static cache turns it into a 4-D one
            seen = _seen(cache_of(kwargs), mask, length, int(input_ids.shape[1]))
            self.shared.prepare(generation, batch, length, mask, seen)
        return prepared


def _seen(cache: Any, mask: Tensor | None, length: int, ids: int) -> int:
    """How many tokens a cache holds. A static one keeps that on the device, and a state space does not count; the mask says it
    too. ids: how many there are of the whole sequence."""
    seen = tokens_in(cache)
    if isinstance(seen, int):
        return seen
    if mask is not None:
        return mask.shape[1] - length
    return ids - length if seen is None else int(seen)
