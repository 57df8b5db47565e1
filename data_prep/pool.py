"""Running one function over many items, in this process or in several, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from megadeberta.errors import DataError


def run_in_order(
    function: Callable[..., Any], items: Iterable[tuple[Any, ...]], *, context: Any, workers: int
) -> Iterator[Any]:
    """Yield ``function(context, *item)`` for every item, in order; items are taken only as results are consumed.

    One worker runs in this process. More are forked from a server process that has their module loaded, get ``context``
    once, and end when this process does.

    Raises:
        DataError: a worker was killed from outside.
    """
    if workers == 1:
        for item in items:
            yield function(context, *item)
        return
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_modules(function))
    pool = ProcessPoolExecutor(
        workers,
        mp_context=server,
        initializer=_start_worker,
        initargs=(function, context),
    )
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most likely for lack of memory; run the same command again with fewer "
            "--workers: finished parts are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _modules(function: Callable[..., Any]) -> list[str]:
    """What workers need: the module of their work. The main script, which each of them imports, is light."""
    return [name for name in (function.__module__,) if name != "__main__"]


_WORK: tuple[Callable[..., Any], Any] | None = None


def _start_worker(function: Callable[..., Any], context: Any) -> None:
    global _WORK
    _WORK = (function, context)
    # Ctrl-C reaches the whole group; the parent alone decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot say so: its end of this pipe closes.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: tuple[Any, ...]) -> Any:
    assert _WORK is not None
    function, context = _WORK
    return function(context, *item)
