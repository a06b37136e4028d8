"""Replacing attributes on module instances so that they can be put back exactly.

Nothing is wrapped and no class is touched: parameter names, hooks and ``state_dict`` stay as they are.
accelerate does the same to ``forward`` and keeps what it found as ``_old_forward``; both orders work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from steerfast.errors import SteerfastError

_ACCELERATE = "_old_forward"
_MARK = "_steerfast"  # on a module whose forward was replaced: whose method stands there


def standing_in(module: Any) -> Any:
    """Whose method stands in for a module's forward; None of a module that is not attached.

    Who is no module stands for itself: libraries take ``forward.__func__``, which expects that, and bind it to the module.
    """
    return module.__dict__.get(_MARK) if isinstance(module, nn.Module) else module


@dataclass
class _Rebound:
    module: nn.Module
    path: str
    name: str
    place: str
    had: bool
    before: Any
    ours: Any


class Rebindings:
    """The replaced attributes of one model."""

    def __init__(self) -> None:
        self._rebound: list[_Rebound] = []

    def rebind(self, module: nn.Module, path: str, name: str, make: Callable[[Any], Any]) -> None:
        """Put ``make(original)`` in place of a bound method; ``path`` names the module in messages."""
        hooked = (
            name == "forward" and hasattr(module, "_hf_hook") and _ACCELERATE in module.__dict__
        )
        place = _ACCELERATE if hooked else name
        had = place in module.__dict__
        original = getattr(module, place)
        ours = make(original)
        self._rebound.append(
            _Rebound(module, path, name, place, had, module.__dict__.get(place), ours)
        )
        module.__dict__[place] = ours
        if name == "forward" and hasattr(ours, "__self__"):
            module.__dict__[_MARK] = ours.__self__

    def restore(self) -> None:
        """Put everything back, or raise SteerfastError, with nothing changed, if another library has
        since replaced one of our functions with its own."""
        found = [(item, self._where(item)) for item in self._rebound]
        for item, place in found:
            if place is None:
                current = getattr(item.module, item.name)
                name = getattr(current, "__qualname__", type(current).__qualname__)
                raise SteerfastError(
                    f"{item.path}.{item.name} was replaced after attach, by {name}; undo that patch "
                    "first, then detach; or leave the model attached, which does nothing while no plan is in use"
                )
        for item, place in found:
            assert place is not None
            if item.had:
                item.module.__dict__[place] = item.before
            elif place == _ACCELERATE:  # accelerate came later and needs a function to call
                method = getattr(type(item.module), item.name)
                item.module.__dict__[place] = method.__get__(item.module)
            else:
                del item.module.__dict__[place]
            item.module.__dict__.pop(_MARK, None)
        self._rebound.clear()

    @staticmethod
    def _where(item: _Rebound) -> str | None:
        places = {item.place, item.name, *((_ACCELERATE,) if item.name == "forward" else ())}
        return next((p for p in places if stands(item.ours, item.module.__dict__.get(p))), None)


def stands(known: Any, current: Any) -> bool:
    """Whether what stands somewhere is what is known to; of a copied model two copies of one bound method."""
    if current is known:
        return True
    owner = getattr(known, "__self__", None)
    return owner is not None and getattr(current, "__self__", None) is owner
