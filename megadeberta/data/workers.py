"""The processes that prepare batches: safe beside gloo and CUDA, ignoring signals, never outliving their rank."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import BaseContext

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from megadeberta.worker_server import start_server

# A batch system signals every process of a job, and a rank that saves in its own time still needs batches until then.
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def worker_context(*, preload: str) -> BaseContext:
    """Start the server that workers are forked from, with the module ``preload`` and the torch it needs loaded.

    It and the workers inherit a mask that blocks the job's signals.
    """
    return start_server([preload], blocked=_JOB_SIGNALS)


def exit_with_the_rank(_worker_id: int) -> None:
    """Called in a new worker: leave as soon as the rank is gone, ``kill -9`` included."""
    # torch's own watch looks at the parent process id, which is the server's; and the server waits for its workers.
    threading.Thread(target=_wait_for_the_rank, daemon=True).start()


def is_loss_of_a_worker(error: Exception) -> bool:
    """Whether an error of a DataLoader with workers means that one died or hangs, and not that one raised it."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker (pid", "DataLoader timed out after"))
    # The connection breaks before DataLoader looks. What a worker raised starts with "Caught".
    return isinstance(error, OSError | EOFError) and not str(error).startswith("Caught ")


def stop_workers(iterator: _MultiProcessingDataLoaderIter) -> None:
    """Tell the workers of a DataLoader to leave, and end those that do not within seconds.

    Dropping the iterator is not enough: a traceback may hold it, and then the end of the interpreter waits for workers
    that wait for work.
    """
    iterator._shutdown_workers()
    for worker in iterator._workers:
        worker.kill()  # it ignores SIGTERM; nothing happens to one that has left


def _wait_for_the_rank() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)
