"""The loss curve of a run under way, drawn by a process of its own: it takes seconds, in which no rank waits."""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megadeberta.config.plugins import load_plugins
from megadeberta.errors import MegadebertaError
from megadeberta.observability.metrics import CURVE_FILE, METRICS_FILE

logger = logging.getLogger(__name__)

_MOST_SECONDS = 600.0
"""That the last picture may take, at the end of the process."""
_NICENESS = 10


@dataclass(frozen=True)
class Curve:
    """What the picture shows, and of which run."""

    folder: str
    """The run's, with its metrics file; the picture goes there."""
    title: str
    losses: Sequence[str]
    """Names of loss terms."""
    unigram: float | None
    """Cross-entropy of the validation text under its word frequencies, in nats."""
    plugins: Sequence[str] = ()
    """Modules that register the terms."""


class CurveDrawer:
    """Keeps the picture of a run up to date, one process at a time."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._process: subprocess.Popen[bytes] | None = None

    def draw(self) -> None:
        """Begin to draw what the metrics file holds now, unless that of an earlier call is still under way."""
        if self._process is not None and self._process.poll() is None:
            return
        self._close_pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            # In a session of its own: a signal to the ranks is none of its business, and its end is that of the pipe.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, json.dumps(asdict(self._curve))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            logger.warning("%s was not drawn: %s", CURVE_FILE, error)

    def draw_at_exit(self) -> None:
        """Draw once more when this process ends: then no other rank waits for it."""
        atexit.register(self._draw_last)

    def _draw_last(self) -> None:
        self._wait()
        self.draw()
        self._wait()

    def _wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            logger.warning("%s was not drawn: it took longer than %.0f s", CURVE_FILE, _MOST_SECONDS)
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _leave_with_the_rank() -> None:
    # Ends when the rank does, however that happens. Not a read of sys.stdin: Python aborts where its lock is held at
    # the end of the process.
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


def _main(arguments: str) -> None:
    threading.Thread(target=_leave_with_the_rank, daemon=True).start()
    os.nice(_NICENESS)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    curve = Curve(**json.loads(arguments))
    try:
        from megadeberta.observability.plot import plot_loss_curve

        load_plugins(curve.plugins, source=CURVE_FILE)
        folder = Path(curve.folder)
        plot_loss_curve(
            folder / METRICS_FILE, folder / CURVE_FILE, title=curve.title, losses=curve.losses, unigram=curve.unigram
        )
    except (MegadebertaError, OSError) as error:
        logger.warning("%s was not drawn: %s", CURVE_FILE, error)


if __name__ == "__main__":
    _main(sys.argv[1])
