"""A decoder of transformers steered by plain hooks, which is what an attached one is held against.

Where layers are, what is done to a stream and where a token stands is worked out here once more, without the package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerfast import Plan, SteeringVector, Term

OF_NO_TEXT = re.compile("image|vision|visual|audio|sound|speech|depth")


class Act(NamedTuple):
    """What happens to a stream: ``add`` number * v, ``clamp`` the projection on v/|v| to number, ``ablate`` it.

    select: ``all`` tokens, those of the ``prompt``, or ``generated`` ones."""

    operator: str
    layer: int
    vector: Tensor
    number: float = 0.0
    site: str = "resid_post"
    select: str = "all"

    def done_to(self, h: Tensor) -> Tensor:
        vector = self.vector.to(h)
        if self.operator == "add":
            return h + self.number * vector
        unit = vector / vector.norm()
        p = (h * unit).sum(-1, keepdim=True)
        return h + ((self.number if self.operator == "clamp" else 0.0) - p) * unit

    def as_term(self) -> Term:
        fields: dict[str, Any] = {"operator": self.operator}
        if self.operator == "add":
            fields["coefficient"] = self.number
        elif self.operator == "clamp":
            fields["target"] = self.number
        name = f"{self.operator} {self.site} {self.layer}"
        vector = SteeringVector(name, {self.layer: self.vector})
        return Term(vector, site=self.site, select=self.select, **fields)


Acts = Sequence[Act]


def plans_of(rows: Sequence[Acts]) -> list[Plan | None]:
    """The plan of each row; None for one where nothing happens."""
    return [Plan(tuple(act.as_term() for act in acts)) if acts else None for acts in rows]


def layers_of(model: nn.Module, count: int) -> list[nn.Module]:
    """The layers of a tiny decoder, which has ``count``: the list of so many that is in no other list."""
    found: dict[str, list[nn.Module]] = {}
    for name, part in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(part, nn.ModuleList) and len(part) == count and not inside:
            found[name] = list(part)
    texts = [name for name in found if not OF_NO_TEXT.search(name)]
    assert len(texts) == 1, texts
    return found[texts[0]]


class _Forwards:
    """Where the tokens of the forward in progress stand: columns from ``seen`` on, of which some are padding."""

    def __init__(self, rows: Sequence[Acts], mask: Tensor) -> None:
        self.rows, self.mask, self.width = rows, mask, mask.shape[1]
        self.seen = self.length = 0

    def begins(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        given = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        length = next(one for one in given if one is not None).shape[1]
        seen = self.seen + self.length
        # A model that keeps no cache is given everything once more.
        self.seen = 0 if length == seen + 1 and seen > 1 else seen
        self.length = length

    def chosen(self, batch: int, row: int, select: str) -> Tensor:
        """[B, T, 1] bool: tokens of this row's requests that an act takes."""
        columns = torch.arange(self.seen, self.seen + self.length)
        more = torch.ones(len(self.mask), max(0, self.seen + self.length - self.width))
        real = torch.cat([self.mask, more], 1)[:, columns] != 0
        real = real.repeat_interleave(batch // len(self.mask), 0)
        mine = torch.arange(batch) // (batch // len(self.rows)) == row
        generated = columns >= self.width
        when = {"all": torch.ones_like(generated), "generated": generated, "prompt": ~generated}
        return (real & mine[:, None] & when[select])[..., None]

    def done(self, stream: Tensor, site: str, layer: int) -> Tensor:
        given = stream.dtype
        before = stream = stream if given is torch.float64 else stream.float()
        for row, acts in enumerate(self.rows):
            for act in acts:
                if (act.site, act.layer) == (site, layer):
                    chosen = self.chosen(len(stream), row, act.select)
                    stream = torch.where(chosen, act.done_to(before) - before + stream, stream)
        return stream.to(given)


@contextmanager
def hooked(
    model: nn.Module, layers: Sequence[nn.Module], rows: Sequence[Acts], mask: Tensor, mid: Any
) -> Iterator[None]:
    """Hooks for one forward or one generation. mask: of the prompts. mid: (layer, its number) -> the part that reads the
    stream between its steps, which it is handed as the very tensor that is added to later; so it is written to in place."""
    forwards = _Forwards(rows, mask)

    def leaves(index: int) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return forwards.done(output, "resid_post", index)
            stream = forwards.done(output[0], "resid_post", index)
            return type(output)((stream, *output[1:]))

        return hook

    def enters(layer: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (forwards.done(args[0], "resid_pre", 0), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: forwards.done(kwargs[name], "resid_pre", 0)}

    def passes(index: int) -> Any:
        def hook(part: Any, args: Any, kwargs: Any) -> None:
            given = [*args, *kwargs.values()]
            stream = next(one for one in given if isinstance(one, Tensor) and one.ndim == 3)
            stream.copy_(forwards.done(stream, "resid_mid", index))

        return hook

    with ExitStack() as stack:
        at = {(act.site, act.layer) for acts in rows for act in acts}
        add = stack.callback
        add(model.register_forward_pre_hook(forwards.begins, with_kwargs=True).remove)
        for index, layer in enumerate(layers):
            if ("resid_post", index) in at:
                add(layer.register_forward_hook(leaves(index)).remove)
            if ("resid_mid", index) in at:
                part = mid(layer, index)
                add(part.register_forward_pre_hook(passes(index), with_kwargs=True).remove)
        if ("resid_pre", 0) in at:
            add(layers[0].register_forward_pre_hook(enters, with_kwargs=True).remove)
        yield
