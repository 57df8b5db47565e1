"""Start a run again by itself: after a lost rank, a hang or a lost machine, as long as that brings it further.

A restart needs nothing but the same command: the ranks take the newest intact checkpoint. What comes back at every
start (a wrong recipe, a loss that is not finite, a full disk, a bad machine) ends the run at once; so does a signal.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER, read_pointer
from megadeberta.errors import (
    EXIT_DIVERGED,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_PEER_LOST,
    EXIT_PREEMPTED,
    EXIT_REPLICAS,
    EXIT_STORAGE,
    EXIT_USAGE,
    CheckpointError,
)
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.verdict import ERROR_PREFIX, Verdict

MOST_RESTARTS = 3
"""In a row without a new checkpoint; of ``megadeberta launch`` and of the sbatch script."""
_FINAL = (0, EXIT_USAGE, EXIT_PREEMPTED, EXIT_DIVERGED, EXIT_STORAGE, EXIT_REPLICAS, EXIT_INTERRUPTED)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_POLL_SECONDS = 0.1

Start = Callable[[int, SignalInbox], Verdict]
"""Starts the ranks and waits for them: the number of the start, from 0, and the signals to look at."""


def is_restarted(verdict: Verdict) -> bool:
    """Whether the same command may get further than it did.

    A bug or a device error (code 1, or one that is not ours) counts only where it came after a finished step: before
    that it will come again.
    """
    if verdict.exit_code in (EXIT_PEER_LOST, EXIT_HUNG):
        return True
    return verdict.trained and verdict.exit_code not in _FINAL


def newest_checkpoint(output: Path) -> str:
    """What ``latest`` names in the output folder of a run; "" for nothing."""
    try:
        return read_pointer(output / CHECKPOINTS_FOLDER) or ""
    except CheckpointError:
        return ""


@dataclass
class Restarts:
    """How often a run is started, and when that is over."""

    most: int
    """Restarts in a row without a new checkpoint."""
    progress: Callable[[], str]
    """The newest checkpoint: another answer than before is progress."""
    say: Callable[[str], None]
    """Shows the user a line."""

    def run(self, start: Start) -> Verdict:
        """Start until the run is done or another start is of no use; call it from the main thread.

        Gives the verdict of the last start; where restarts did not help, with a last line that quotes the first error.
        """
        fruitless, first_error, number = 0, "", 0
        with SignalInbox() as inbox:
            while True:
                before = self.progress()
                verdict = start(number, inbox)
                if self.most == 0 or inbox.forwarded or inbox.wants_kill or not is_restarted(verdict):
                    return verdict
                error = _first_line(verdict)
                newest = self.progress()
                if newest != before:
                    fruitless, first_error = 0, ""
                fruitless += 1
                first_error = first_error or error
                if fruitless > self.most:
                    return _given_up(verdict, restarts=self.most, newest=newest, first_error=first_error)
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (fruitless - 1))
                self._tell(verdict, fruitless, newest, pause)
                if (stopped := _wait(pause, inbox)) is not None:
                    return stopped
                number += 1

    def _tell(self, verdict: Verdict, fruitless: int, newest: str, pause: float) -> None:
        for line in verdict.lines:
            self.say(line)
        self.say(
            f"starting again in {pause:.0f} s from {newest or 'the beginning'}: restart {fruitless} of at most "
            f"{self.most} without a new checkpoint"
        )


def _first_line(verdict: Verdict) -> str:
    lines = [line.removeprefix(ERROR_PREFIX) for line in verdict.lines]
    return lines[0] if lines else f"exit code {verdict.exit_code} without a message"


def _given_up(verdict: Verdict, *, restarts: int, newest: str, first_error: str) -> Verdict:
    last = (
        f"{ERROR_PREFIX}gave up after {restarts} restart{'s' * (restarts != 1)} without a checkpoint newer than "
        f"{newest or 'the beginning'}; the first error was: {first_error}"
    )
    return replace(verdict, lines=(*verdict.lines, last))


def _wait(seconds: float, inbox: SignalInbox) -> Verdict | None:
    """Pause between two starts; a signal ends it, and the run."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (number := inbox.take()) is not None:
            name = signal.Signals(number).name
            return Verdict(EXIT_PREEMPTED, (f"stopped by {name} between two starts; the same command resumes",))
        time.sleep(_POLL_SECONDS)
    return None
