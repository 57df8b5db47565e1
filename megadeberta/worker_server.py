"""Starting the process that workers are forked from, while its parent still loads what it needs itself."""

import multiprocessing
import signal
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext


def start_server(preload: Sequence[str], *, blocked: Iterable[signal.Signals]) -> BaseContext:
    """Start the server that workers are forked from, if it does not run yet, and do not wait until it is ready.

    Plain fork would copy the locks of other threads, held or not. The server is a fresh process.

    Args:
        preload: modules that it loads, so that workers have them at once.
        blocked: signals that neither it nor its workers ever get, not even while it loads these modules.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()
        # Starting the tracker unblocks some of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context
