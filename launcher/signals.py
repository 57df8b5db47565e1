"""The signals that a launcher passes on to its ranks: noted when they arrive, taken when the launcher looks."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGINT becomes SIGTERM: Python's own answer to SIGINT, before the ranks have installed theirs, is a traceback each.
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
_INTERRUPTS_UNTIL_KILL = 3
_Handler = Callable[[int, FrameType | None], Any] | int | None


class SignalInbox:
    """Catches signals inside a ``with`` block, in the main thread; what was set before comes back after it."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous: dict[int, _Handler] = {}
        self.forwarded: set[int] = set()
        """What ``take`` has given so far, SIGKILL apart."""
        self.interrupts = 0

    def __enter__(self) -> "SignalInbox":
        # A parent that ignores SIGCHLD hands that on, and the kernel would then throw our ranks' exit codes away.
        self._previous = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, signal.SIG_DFL)}
        for signum in _FORWARDED:
            if signal.getsignal(signum) is signal.SIG_IGN and signum == signal.SIGHUP:
                continue  # nohup
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._received.append(signum)

    @property
    def wants_kill(self) -> bool:
        """Whether the user has interrupted so often that waiting is over."""
        return self.interrupts >= _INTERRUPTS_UNTIL_KILL

    def take(self) -> signal.Signals | None:
        """What to send to the ranks next: SIGKILL when waiting is over, None if nothing arrived."""
        if not self._received:
            return None
        signum = self._received.pop(0)
        self.interrupts += signum == signal.SIGINT
        if self.wants_kill:
            return signal.SIGKILL
        passed_on = _FORWARDED[signal.Signals(signum)]
        self.forwarded.add(passed_on)
        return passed_on

    def describe_kill(self) -> str:
        """One line for the user."""
        return f"killed after {self.interrupts} interrupts; the same command resumes"


@contextmanager
def listening(inbox: SignalInbox | None) -> Iterator[SignalInbox]:
    """``inbox``, which listens already, or one of its own for as long as the block runs."""
    if inbox is not None:
        yield inbox
    else:
        with SignalInbox() as own:
            yield own
