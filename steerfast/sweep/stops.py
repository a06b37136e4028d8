"""Stops: the sites of a model in order, each with what leads there and what reads the stream behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerfast.decoders.find import META, Decoder
from steerfast.decoders.layer_inputs import LayerInputs
from steerfast.decoders.read import Arguments, arguments_of
from steerfast.decoders.survey import Survey
from steerfast.decoders.wiring import Body, branch_of
from steerfast.errors import SteerfastError
from steerfast.models.hand_over import KernelNorm, unobserved
from steerfast.plans.sites import site_index


@dataclass(frozen=True)
class Given:
    """A layer's arguments beside the stream: as its wiring names them, and as it is called."""

    named: Arguments
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of_layers(cls, decoder: Decoder, inputs: LayerInputs) -> list[Given]:
        """In order."""
        given = zip(decoder.layers, inputs.args, inputs.kwargs, strict=True)
        return [
            cls(arguments_of(layer, (None, *args), dict(kwargs)), args, kwargs)
            for layer, args, kwargs in given
        ]


@dataclass(frozen=True)
class Stop:
    """A site. layer: whose output it is, or is inside of. body: the step that leads there; None: the whole layer, or nothing
    (at the first). reader: the norm that reads the stream behind it, None where the next part reads the stream itself;
    norm: the same, where a kernel may compute it. factor: what multiplies the stream once the branch is added.
    last_token_next: what follows looks at each token by itself, and is the last of the model."""

    site: int
    layer: int
    body: Body | None
    module: Any
    reader: nn.Module | None
    norm: KernelNorm | None
    factor: Any = None
    last_token_next: bool = False
    reads_tokens: bool = False

    def arrive(self, stream: Tensor, normed: Tensor, given: Given) -> tuple[Tensor, Tensor | None]:
        """(stream, the branch that it is waiting for), or the stream alone behind a layer that is run as a whole."""
        rows = stream.shape[0]
        if self.body is None:
            args, kwargs = _masks_for(given.args, rows), _masks_for(given.kwargs, rows)
            return branch_of(self.module(stream, *args, **kwargs)), None
        own, rest = _masks_for(given.named.own, rows), _masks_for(given.named.rest, rows)
        return stream, self.body.run(normed, own, rest)

    def sum(self, stream: Tensor, branch: Tensor | None) -> Tensor:
        """The stream that steering sees."""
        if branch is None:
            return stream
        stream = stream + branch
        return stream if self.factor is None else stream * self.factor

    def next_input(self, stream: Tensor) -> Tensor:
        """What the part behind it reads."""
        return stream if self.reader is None else self.reader(stream)  # type: ignore[no-any-return]


def stops(decoder: Decoder, survey: Survey) -> list[Stop]:
    """``resid_pre`` of the first layer, then what each layer has.

    Raises SteerfastError for a decoder whose result is not a norm of the last stream.
    """
    if survey.norm is None:
        raise SteerfastError(
            f"a sweep reads what the last norm makes, and of {type(decoder.module).__name__} it is not known which that is; run "
            "the plans one by one, with attach"
        )
    layers, module = decoder.layers, decoder.module
    entries = [
        _entry(layer, found.wiring) for layer, found in zip(layers, survey.layers, strict=True)
    ]
    readers: list[tuple[nn.Module, str | None]] = [*entries, (module, survey.norm)]

    def reading(owner: nn.Module, name: str | None) -> tuple[nn.Module | None, KernelNorm | None]:
        if name is None:
            return None, None
        norm = owner._modules[name]
        assert norm is not None
        known = survey.norm_form is not None if owner is module else type(norm) in survey.forms
        if not known:
            return norm, None
        return norm, KernelNorm.within(owner, name, survey.forms)

    found = [Stop(0, 0, None, None, *reading(*readers[0]))]
    for index, (layer, one) in enumerate(zip(layers, survey.layers, strict=True)):
        post, behind = site_index("resid_post", index), reading(*readers[index + 1])
        wiring = one.wiring
        if wiring is None:
            found.append(Stop(post, index, None, layer, *behind, reads_tokens=True))
            continue
        bodies = [Body(layer, step) for step in wiring.steps]
        factor = None if wiring.factor is None else getattr(layer, wiring.factor)
        if wiring.has_mid:
            mid, feed = site_index("resid_mid", index), wiring.steps[1]
            alone = index == len(layers) - 1 and _by_token(layer, bodies[1], survey)
            between = reading(layer, feed.before)
            found.append(
                Stop(
                    mid,
                    index,
                    bodies[0],
                    layer,
                    *between,
                    last_token_next=alone,
                    reads_tokens=True,
                )
            )
        found.append(
            Stop(
                post,
                index,
                bodies[-1],
                layer,
                *behind,
                factor=factor,
                reads_tokens=not wiring.has_mid,
            )
        )
    return found


def _masks_for(given: Any, rows: int) -> Any:
    """A mask of one row for as many as there are; some attentions look at its shape."""
    if isinstance(given, Mapping):
        return {name: _masks_for(value, rows) for name, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_masks_for(value, rows) for value in given)
    if isinstance(given, Tensor) and given.ndim == 4 and given.shape[0] == 1:
        return given.expand(rows, -1, -1, -1)
    return given


def _entry(layer: nn.Module, wiring: Any) -> tuple[nn.Module, str | None]:
    return layer, None if wiring is None else wiring.steps[0].before


def _by_token(layer: nn.Module, body: Body, survey: Survey) -> bool:
    """A feed-forward that is given the stream alone, with nothing but norms and dropout behind it."""
    step = body.step
    behind = [layer._modules[name] for name in step.after]
    simple = all(isinstance(part, nn.Dropout) or type(part) in survey.forms for part in behind)
    return not step.arguments and not step.rest and simple


def check_whole(decoder: Decoder) -> tuple[torch.device, torch.dtype]:
    """Where the model is, and in what precision; SteerfastError where running the parts one by one would leave something out."""
    parameters = list(decoder.module.parameters())
    places = {parameter.device for parameter in parameters}
    path = decoder.path.rstrip(".") or "it"
    if len(places) > 1 or META in places:
        raise SteerfastError(
            f"a forked pass needs the model on one device, and {path} is on "
            f"{', '.join(sorted(map(str, places)))}; load it without device_map"
        )
    dtype = next(p.dtype for p in parameters if p.is_floating_point())
    return places.pop(), dtype


def check_unobserved(decoder: Decoder, survey: Survey) -> None:
    """SteerfastError for hooks on what is not called as the module that it is."""
    watched: list[tuple[str, nn.Module | None]] = []
    for index, (layer, found) in enumerate(zip(decoder.layers, survey.layers, strict=True)):
        if found.wiring is not None:
            path = f"{decoder.layers_path}{index}"
            watched.append((path, layer))
            for step in found.wiring.steps:
                if step.before is not None:
                    watched.append((f"{path}.{step.before}", layer._modules[step.before]))
    if survey.norm is not None:
        watched.append((f"{decoder.path}{survey.norm}", decoder.module._modules[survey.norm]))
    for path, part in watched:
        if part is not None and not unobserved(part):
            raise SteerfastError(
                f"{path} carries hooks, which a forked pass would not call; remove them first"
            )
