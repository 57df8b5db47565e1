"""trackio: the Space or server of TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, else a database in the output folder."""

import contextlib
import io
import os
from collections.abc import Mapping
from typing import Any

from megadeberta.observability.tracker import TrackedRun

TRACKIO_FOLDER = "trackio"


class TrackioWriter:
    """One run over all starts.

    In a local database it is written anew at a resume: a process that is killed loses what its thread had not stored.
    """

    def __init__(self, run: TrackedRun) -> None:
        # trackio reads it when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str((run.folder / TRACKIO_FOLDER).absolute()))
        import trackio

        self._trackio = trackio
        # trackio finds a run by its name alone.
        known = run.known_identity("trackio")
        name = f"{run.name}-{run.identity('trackio')[:8]}"
        is_local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
        if is_local and known:
            _remove_earlier(trackio, run.project, name)
        with _silence():
            self._run = trackio.init(
                project=run.project,
                name=name,
                config=dict(run.settings),
                resume="allow" if known and not is_local else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        # Of a remote run trackio knows the last step, and tells it nowhere else.
        last = 0 if is_local or not known else max(0, self._run._next_step - 1)
        self.last: Mapping[str, int] = {"train": last, "valid": last}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """A thread stores or sends what was logged, twice per second."""

    def close(self) -> None:
        """Wait for that thread; the run's own ``finish`` would be called once more at the exit, and print."""
        with _silence():
            self._trackio.finish()


def _remove_earlier(trackio: Any, project: str, name: str) -> None:
    with contextlib.suppress(ValueError):  # no such project: the database is gone
        for earlier in trackio.Api().runs(project):
            if earlier.name == name:
                earlier.delete()


def _silence() -> contextlib.AbstractContextManager[Any]:
    """It prints how to open its dashboard; the documentation says so."""
    return contextlib.redirect_stdout(io.StringIO())
