"""The console script, also as `python -m megadeberta` for launchers that start a module."""

import signal
import sys
from types import FrameType

from megadeberta.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends it without a traceback, as it does later.

    A signal that a scheduler sends to ``launch`` before it listens ends it as later ones do before training begins.
    """
    if sys.argv[1:2] == ["launch"]:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _leave)
    try:
        from megadeberta.cli import main as run
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    sys.stderr.write(f"stopped by {name} before training began; the same command starts or resumes it\n")
    sys.exit(EXIT_PREEMPTED)


if __name__ == "__main__":
    main()
