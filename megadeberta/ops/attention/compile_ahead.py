"""Compile the kernels of attention calls before they are needed: several at once, within a time.

Threads of one process are enough, as the compiler does not hold Python's lock.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

Key = TypeVar("Key")

_KERNELS = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
_MOST_THREADS = 16

_compile: Callable[..., None] | None = None


def kernels_to_launch(module: Any) -> Any:
    """``module``; while ``compile_ahead`` runs a call, one like it whose kernels are compiled and not launched."""
    if _compile is None:
        return module
    return SimpleNamespace(**{name: _CompileOnly(getattr(module, name), _compile) for name in _KERNELS})


def compile_ahead(
    calls: Mapping[Key, Callable[[], object]], *, seconds: float, prepare: Callable[[], object] | None = None
) -> dict[Key, str]:
    """Compile what ``calls`` launch; their results are worthless. Returns which are not ready, by key, and why.

    Args:
        seconds: after which what is not compiled is given up.
        prepare: runs first in every thread that compiles, such as the choice of the device.
    """
    problems: dict[Key, str] = {}
    compiling: dict[Key, list[Future[Any]]] = {}
    pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MOST_THREADS), initializer=prepare)
    try:
        for key, call in calls.items():
            own: list[Future[Any]] = []
            compiling[key] = own
            with _instead_of_launching(lambda compiler, *a, own=own, **k: own.append(pool.submit(compiler, *a, **k))):
                try:
                    call()
                except Exception as error:  # what a compiler or a driver raises has no common class
                    problems[key] = describe_failure(error)
        wait([future for own in compiling.values() for future in own], timeout=seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for key, own in compiling.items():
        for future in own:
            if not future.done() or future.cancelled():
                problems.setdefault(key, f"was not compiled within {seconds:.0f} s")
            elif (failure := future.exception()) is not None:
                problems.setdefault(key, describe_failure(failure))
    return problems


@contextmanager
def _instead_of_launching(compiler: Callable[..., None]) -> Iterator[None]:
    # For all threads: autograd runs the backward pass of a GPU in one of its own.
    global _compile
    _compile = compiler
    try:
        yield
    finally:
        _compile = None


def describe_failure(error: BaseException) -> str:
    """One line for the log on what a compiler, a driver or torch raised."""
    if "out of memory" in str(error):
        return "needs more memory than there is"
    while error.__cause__ is not None:  # Triton's compiler begins with the code around
        error = error.__cause__
    lines = str(error).splitlines() or [""]
    return f"failed with {type(error).__name__}: {lines[0][:200]}"


class _CompileOnly:
    def __init__(self, kernel: Any, compiler: Callable[..., None]) -> None:
        self._kernel, self._compiler = kernel, compiler

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: self._compiler(self._kernel.warmup, *arguments, grid=grid, **options)
