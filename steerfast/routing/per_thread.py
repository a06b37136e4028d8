"""Whatever runs a model by itself, a thread or an asyncio task, and what it has for its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def task_here() -> asyncio.Task[Any] | None:
    """The asyncio task that is running in this thread, if one is."""
    loop = asyncio._get_running_loop()
    return None if loop is None else asyncio.current_task(loop)


def who_runs() -> tuple[int, int]:
    """A name for this thread, or this task in it."""
    task = task_here()
    return threading.get_ident(), 0 if task is None else id(task)


class PerThread(threading.local, Generic[T]):
    """One ``T`` for each thread, and for each task of an event loop in it; made when it is first asked for."""

    def __init__(self, make: Callable[[], T]) -> None:  # called anew in every thread
        self._make = make
        self._of_thread: T | None = None
        self._of_task: weakref.WeakKeyDictionary[asyncio.Task[Any], T] = weakref.WeakKeyDictionary()

    def mine(self) -> T:
        """That of whoever asks."""
        task = task_here()
        if task is not None:
            if task not in self._of_task:
                self._of_task[task] = self._make()
            return self._of_task[task]
        if self._of_thread is None:
            self._of_thread = self._make()
        return self._of_thread
