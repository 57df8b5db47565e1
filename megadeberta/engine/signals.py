"""A request to stop: the handler sets a flag, the training loop shares it at the next step and saves.

Exit code of a run that was stopped this way, after its checkpoint is committed: 75 (``EXIT_PREEMPTED``); the same
command resumes. Further signals change nothing, so a second one cannot cut off the save; ``kill -9`` can, and the
previous checkpoint is still there.
"""

import signal
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Set by SIGTERM (most schedulers), SIGUSR1 (Slurm's ``--signal``) and SIGINT (Ctrl-C) while it is entered.

    A signal reaches some ranks before others, or only one: the loop must share ``requested`` among the ranks each step
    and act on the shared value.
    """

    def __init__(self, signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether a stop signal has arrived in this process."""
        return self._requested

    def __enter__(self) -> Self:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but the flag: the interrupted line may be in the middle of a save or a collective.
        self._requested = True
