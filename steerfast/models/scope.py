"""Where a ``use`` holds: in the thread or asyncio task that called it, and in whatever is started from there.

Tasks begin with a copy of the context that they were made in. Threads do not before Python 3.14, so ``follow_threads`` gives
what is entered to threads started with ``threading.Thread`` and to jobs given to a ``ThreadPoolExecutor``: a streamer's
``generate`` in a background thread steers as the code around it reads. Threads of other pools know nothing of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from steerfast.routing.per_thread import who_runs


class Scope:
    """Something that holds, for one attached model, from where it is entered."""

    def __init__(self, attachment: object) -> None:
        self.attachment = attachment
        self.owner = who_runs()
        self.is_open = True


class InLoop(Scope):
    """A decoding loop of one's own, which says what the next forward reads."""


_entered: ContextVar[tuple[Scope, ...]] = ContextVar("steerfast_entered", default=())
S = TypeVar("S", bound=Scope)


def entered(kind: type[S], attachment: object) -> list[S]:
    """All of a kind that were entered here, or where this was started; the innermost first. Inherited ones may be over."""
    return [
        one
        for one in reversed(_entered.get())
        if isinstance(one, kind) and one.attachment is attachment
    ]


def enter(one: Scope) -> None:
    """From here on it is the innermost."""
    me = who_runs()
    kept = (other for other in _entered.get() if other.is_open or other.owner != me)
    _entered.set((*kept, one))


def leave(one: Scope) -> bool:
    """It holds here no longer. Harmless where it did not, which is False."""
    here = _entered.get()
    _entered.set(tuple(other for other in here if other is not one))
    return one in here


def _within(inherited: tuple[Scope, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def running(*args: Any, **kwargs: Any) -> Any:
        before = _entered.set(inherited)
        try:
            return run(*args, **kwargs)
        finally:
            _entered.reset(before)

    return running


@functools.cache  # once a process
def follow_threads() -> None:
    """Let threads, and jobs of thread pools, begin with what is entered where they are started."""
    start: Any = threading.Thread.start
    submit: Any = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_within(thread: threading.Thread) -> None:
        if _entered.get() and not _works_for_a_pool(thread):
            thread.run = _within(_entered.get(), thread.run)  # type: ignore[method-assign]
        start(thread)

    @functools.wraps(submit)
    def submit_within(pool: ThreadPoolExecutor, job: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _entered.get():
            job = _within(_entered.get(), job)
        return submit(pool, job, *args, **kwargs)

    threading.Thread.start = start_within  # type: ignore[method-assign,assignment]
    ThreadPoolExecutor.submit = submit_within  # type: ignore[method-assign,assignment]


def _works_for_a_pool(thread: threading.Thread) -> bool:
    """Its jobs come from elsewhere, each with what was entered there."""
    target = getattr(thread, "_target", None)
    return getattr(target, "__module__", "") == "concurrent.futures.thread"
