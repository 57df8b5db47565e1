"""Work on large pieces of a file in a thread beside the one that reads and writes them, such as hashing."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_WORTH_A_THREAD = 256 << 10
_MOST_WAITING = 2


class Beside:
    """Calls one function with every piece, in order: large ones in a thread, where few wait at a time.

    The function must leave Python's lock while it works, as hashlib and numpy do.
    """

    def __init__(self, function: Callable[[memoryview], None]) -> None:
        self._function = function
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = deque[Future[None]]()

    def add(self, piece: memoryview) -> None:
        """The next piece, which must not change before ``wait``; raises what an earlier call raised."""
        if len(piece) < _WORTH_A_THREAD:
            self._wait_for(0)
            self._function(piece)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        self._wait_for(_MOST_WAITING - 1)
        self._waiting.append(self._thread.submit(self._function, piece))

    def wait(self) -> None:
        """All calls are done; raises what one of them raised."""
        self._wait_for(0)
        self.stop()

    def stop(self) -> None:
        """End the thread; a piece that waits is dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = None
        self._waiting.clear()

    def _wait_for(self, number: int) -> None:
        while len(self._waiting) > number:
            self._waiting.popleft().result()
