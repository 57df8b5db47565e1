"""A save as stages: what a rank does by itself, then what the ranks tell each other; at once or beside training.

Between two stages the ranks exchange text, always on the thread that calls, as training's own collectives: one group,
one order. What a stage does touches files alone, so it can run on another thread while training goes on.
"""

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Work = Callable[[], str]
"""One rank's part of a stage; what it found, for the other ranks."""
SaveStages = Generator[Work, str, Path | None]
"""Gives the work of each stage and takes what it found; in the end the committed folder, None if the save failed.

Every rank has as many stages, and between two of them reaches the same collectives.
"""


def save_at_once(stages: SaveStages) -> Path | None:
    """Run all of a save here and now. Collective over all ranks.

    Raises:
        StorageError: as the stages of ``CheckpointStore``.
    """
    found: str | None = None
    while True:
        try:
            work = next(stages) if found is None else stages.send(found)
        except StopIteration as end:
            return end.value
        found = work()


class BackgroundSave:
    """A save whose work runs on a thread, beside the caller's.

    Nothing happens between two stages until ``advance``: a save that is dropped is never half committed.
    """

    def __init__(self, step: int, begin: Callable[[], SaveStages], *, drop: Callable[[], None]) -> None:
        """Collective over all ranks up to the first stage.

        Args:
            step: optimizer steps done.
            begin: copies what is to be written, and gives the stages.
            drop: called from ``abandon``; makes work that reads the copy end soon, with an exception.

        Raises:
            MegadebertaError: as ``begin`` does.
        """
        self._started = time.monotonic()
        self.step = step
        self.committed: Path | None = None
        """Known when ``is_over``; None if the save failed."""
        self.is_over = False
        self._stages, self._drop = begin(), drop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work = self._pool.submit(next(self._stages))
        self.waited = time.monotonic() - self._started
        """Seconds for which the caller has waited for this save."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    @property
    def is_busy(self) -> bool:
        """Whether this rank's work of the stage is still under way; no collective."""
        return not self._work.done()

    def advance(self) -> None:
        """Wait for this rank's work, exchange, and begin the next stage. Collective over all ranks, which call it
        equally often; where none ``is_busy`` it waits for no file.

        Raises:
            StorageError: as the stages of ``CheckpointStore``; the save is over then.
        """
        began = time.monotonic()
        try:
            self._work = self._pool.submit(self._stages.send(self._work.result()))
        except StopIteration as end:
            self.committed = end.value
            self._end()
        except BaseException:
            self._end()
            raise
        finally:
            self.waited += time.monotonic() - began

    def abandon(self) -> None:
        """Give up: nothing more of it becomes visible after this. Not collective, for a run that ends by an error.

        Waits for what this rank is just doing: a commit that has begun is finished, so that no thread touches the
        folder once the job has released it.
        """
        self._drop()
        self._end()

    def _end(self) -> None:
        self.is_over = True
        self._pool.shutdown()
        self._stages.close()
