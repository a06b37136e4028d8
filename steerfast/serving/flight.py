"""In flight: what requests hold of memory while an engine has them, bounded over all of them.

A plan's numbers take up to as many bytes as an engine's table, whatever the text that it came as; and an engine keeps those
of everybody who waits. So who would exceed the bound waits here, where a request is a few kilobytes.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Flight:
    """``room`` bytes, given in the order of asking. Of one event loop."""

    def __init__(self, room: int) -> None:
        self.room, self.bytes = room, 0
        self._held: dict[object, int] = {}
        self._waiting: deque[tuple[object, int, asyncio.Future[None]]] = deque()

    def begin(self) -> object:
        """A request that will ``end``, and may ``take`` meanwhile. Not by its name, which is a client's to choose."""
        request = object()
        self._held[request] = 0
        return request

    async def take(self, request: object, size: int) -> None:
        """Wait until there are so many bytes, or nobody else has any. Once for a request; of what has not begun, or has ended,
        nothing is counted: nobody would say when it ends."""
        if self._held.get(request) != 0:
            return
        if self._waiting or not self._fits(size):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((request, size, turn))
            await turn  # counted by whoever made room
            return
        self._count(request, size)

    def end(self, request: object) -> None:
        """Its bytes are free, whether it had taken them or waited."""
        self.bytes -= self._held.pop(request, 0)
        while self._waiting:
            first, size, turn = self._waiting[0]
            if first not in self._held or turn.done():  # it has gone
                self._waiting.popleft()
                continue
            if not self._fits(size):
                return
            self._waiting.popleft()
            self._count(first, size)
            turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.bytes == 0 or self.bytes + size <= self.room

    def _count(self, request: object, size: int) -> None:
        self._held[request] = size
        self.bytes += size
