"""Reading what clients send beside the event loop, which serves everybody.

One thread: reading is Python's, which runs in one thread at a time whatever their number. Whoever sent least is next, so
that a short request waits for one long one at most, not for all that came before it.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class Aside:
    """A thread that does one thing after another, the least first. It starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any]]]
        self._waiting = queue.PriorityQueue()
        self._thread: threading.Thread | None = None

    async def run(self, size: int, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, or raises, while the event loop goes on. size: what it is put in order by: bytes, say."""
        future: Future[_T] = Future()
        self._waiting.put((size, next(self._numbers), future, work))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            _, _, future, work = self._waiting.get()
            if not future.set_running_or_notify_cancel():  # its client has gone
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # it is the caller's
                future.set_exception(error)
            del future, work  # nothing of a client is kept while this waits for the next


def on_event_loop() -> bool:
    """Whether this thread runs an event loop, which must not be kept from it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
