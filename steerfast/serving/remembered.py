"""Remembered: what was found out before, as much of it as fits into so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Remembered(Generic[_Key, _Value]):
    """Values by key, of ``room`` bytes at most: who was not asked for the longest goes. Safe to use from several threads."""

    def __init__(self, room: int) -> None:
        self.room, self.bytes = room, 0
        self._kept: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> _Value | None:
        """The value, or None where it is not, or no longer, there."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: _Key, value: _Value, size: int) -> None:
        """Keep a value that takes so many bytes."""
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = value, size
            self.bytes += size - before
            while self.bytes > self.room:
                _, (_, dropped) = self._kept.popitem(last=False)
                self.bytes -= dropped
