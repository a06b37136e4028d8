"""One short forward of a decoder, watched: what each layer was given, which of its parts ran on what, what came out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.caches import named_cache, tokens_in
from steerfast.decoders.evaluating import evaluating
from steerfast.decoders.find import Decoder, input_device

# Tokens of three rows: one is padded, so that masks are tensors, and the others differ in their last token.
PROMPT = 5
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Seen:
    """A tensor as an object, and its values when it was seen: it may be written to later."""

    tensor: Tensor
    value: Tensor

    def is_still(self, other: Seen | None) -> bool:
        """The same object, unchanged in between."""
        return (
            other is not None
            and self.tensor is other.tensor
            and same_values(self.value, other.value)
        )


def same_values(a: Tensor, b: Tensor) -> bool:
    """To the bit; what is no number in both is the same (padding may be, where a row sees nothing)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def seen(value: Any) -> Seen | None:
    """A stream, or the first of several things: floating point, [B, T, ...]."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.ndim < 3 or not value.is_floating_point():
        return None
    return Seen(value, value.clone())


def took(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int | str, Seen]:
    """The streams among arguments, by position or name."""
    given: dict[int | str, Any] = dict(enumerate(args))
    given.update(kwargs)
    looked = {at: seen(value) for at, value in given.items() if isinstance(value, Tensor)}
    return {at: stream for at, stream in looked.items() if stream is not None}


@dataclass
class Call:
    """A part of a layer that ran. took: streams among its arguments, by position or name. gave: its first result."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    took: dict[int | str, Seen]
    output: Any = None
    gave: Seen | None = None

    def took_at(self, stream: Seen | None) -> int | str | None:
        """Where it was given this very stream; None if nowhere."""
        if stream is None:
            return None
        return next((at for at, one in self.took.items() if one.is_still(stream)), None)

    @property
    def alone(self) -> bool:
        """It was given one thing."""
        return len(self.args) + len(self.kwargs) == 1


@dataclass
class LayerRun:
    """A layer that ran: its arguments, what entered it and left it, and its parts in order."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entered: Seen | None
    calls: list[Call] = field(default_factory=list)
    output: Any = None
    left: Seen | None = None


@dataclass
class Watched:
    """tokens: (B, T). runs: of layers, as they came. readers: {name: what it took} of the decoder's other parts that took a stream.
    embedded: what the embedding gave. result: the decoder's. cache: (name, what the forward left)."""

    tokens: tuple[int, int]
    runs: list[LayerRun] = field(default_factory=list)
    readers: dict[str, Seen] = field(default_factory=dict)
    embedded: Seen | None = None
    result: Seen | None = None
    cache: tuple[str, Any] | None = None


class _Watch:
    """Hooks for one forward. What runs in another thread meanwhile is not looked at."""

    def __init__(self, decoder: Decoder, tokens: tuple[int, int]) -> None:
        self.decoder, self.found = decoder, Watched(tokens)
        self.width = decoder.hidden_size
        self.open: list[LayerRun] = []
        self.thread = threading.get_ident()

    # -- hooks -----------------------------------------------------------------------------------------

    def layer_begins(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        run = LayerRun(layer, args, dict(kwargs), next(iter(took(args, kwargs).values()), None))
        self.found.runs.append(run)
        self.open.append(run)

    def layer_ends(self, layer: nn.Module, args: Any, output: Any) -> None:
        run = self.open.pop()
        run.output, run.left = output, seen(output)

    def part_begins(
        self, layer: nn.Module, name: str, part: nn.Module, args: Any, kwargs: Any
    ) -> None:
        if self.open and self.open[-1].layer is layer:  # layers may share a part
            self.open[-1].calls.append(Call(name, part, args, dict(kwargs), took(args, kwargs)))

    def part_ends(self, layer: nn.Module, part: nn.Module, args: Any, output: Any) -> None:
        if self.open and self.open[-1].layer is layer:
            call = next(c for c in reversed(self.open[-1].calls) if c.module is part)
            call.output, call.gave = output, seen(output)

    def reader_begins(self, name: str, part: nn.Module, args: Any, kwargs: Any) -> None:
        for stream in took(args, kwargs).values():
            self.found.readers.setdefault(name, stream)

    def embeds(self, part: nn.Module, args: Any, output: Any) -> None:
        if self.found.embedded is None:
            self.found.embedded = seen(output)

    def install(self, stack: ExitStack) -> None:
        decoder = self.decoder

        def here(hook: Callable[..., None]) -> Callable[..., None]:
            def called(*args: Any) -> None:
                if threading.get_ident() == self.thread:
                    hook(*args)

            return called

        def before(part: nn.Module, hook: Callable[..., None]) -> None:
            stack.callback(part.register_forward_pre_hook(here(hook), with_kwargs=True).remove)

        def after(part: nn.Module, hook: Callable[..., None]) -> None:
            stack.callback(part.register_forward_hook(here(hook)).remove)

        layers = decoder.layers
        for layer in dict.fromkeys(layers):
            before(layer, self.layer_begins)
            for name, part in layer.named_children():
                before(part, partial(self.part_begins, layer, name))
                after(part, partial(self.part_ends, layer))
            after(layer, self.layer_ends)
        for name, part in decoder.module.named_children():
            if name != decoder.layers_name:
                before(part, partial(self.reader_begins, name))
        after(decoder.embedding, self.embeds)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Nobody's hooks see this forward, and nothing is compiled for it; all is as it was afterwards."""
    kept = []
    for module in model.modules():
        for name in _HOOKS:
            hooks = module.__dict__.get(name)
            if hooks:
                kept.append((hooks, dict(hooks)))
                hooks.clear()
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    try:
        with (
            evaluating(model),
            torch.inference_mode(False),  # which switches gradients on
            torch.no_grad(),
            # Not for nothing: it imports the compiler.
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        ):
            yield
    finally:
        for hooks, before in kept:  # beside what the model itself has installed meanwhile
            added = dict(hooks)
            hooks.clear()
            hooks.update(before | added)


def tokens_for(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """(ids, mask): three prompts and one more token of each."""
    vocabulary = _vocabulary(decoder)
    device = input_device(decoder) or torch.device("cpu")
    ids = (torch.arange(2 * (PROMPT + 1), device="cpu") * 7 + 3) % vocabulary
    ids = ids.reshape(2, PROMPT + 1)[[0, 1, 1]].to(device)
    ids[2, PROMPT - 1] = (ids[1, PROMPT - 1] + 1) % vocabulary
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    return ids, mask


def watch(decoder: Decoder) -> tuple[Watched, Watched | Exception | None]:
    """Three prompts, then one more token of each on the cache that they left.

    The second is None where there is no cache, or the exception that it raises. Call it while the model is ``undisturbed``. Raises whatever the model raises.
    """
    ids, mask = tokens_for(decoder)
    prompt = _watched(decoder, ids[:, :PROMPT], mask[:, :PROMPT], None)
    if prompt.cache is None:
        return prompt, None
    try:
        return prompt, _watched(decoder, ids[:, PROMPT:], mask, prompt.cache)
    except Exception as error:
        return prompt, error


def _vocabulary(decoder: Decoder) -> int:
    weight = decoder.embedding._parameters.get("weight")
    return int(decoder.config.vocab_size if weight is None else weight.shape[0])


def _watched(decoder: Decoder, ids: Tensor, mask: Tensor, cache: Any) -> Watched:
    watching = _Watch(decoder, (int(ids.shape[0]), int(ids.shape[1])))
    given: dict[str, Any] = {} if cache is None else {cache[0]: cache[1]}
    if (
        cache is not None and tokens_in(cache[1]) is None
    ):  # a state space takes the mask of what is new
        mask = mask[:, -ids.shape[1] :]
    with ExitStack() as stack:
        watching.install(stack)
        output = decoder.module(
            input_ids=ids, attention_mask=mask, use_cache=True, return_dict=True, **given
        )
    watching.found.result = seen(tuple(output.values())) if output else None
    watching.found.cache = named_cache(output)
    return watching.found
