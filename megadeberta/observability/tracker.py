"""Trackers beside the metrics file: TensorBoard, W&B, trackio, MLflow. Each may fail; training goes on and says so."""

import hashlib
import json
import logging
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from megadeberta.storage import refuse_link, write_file

logger = logging.getLogger(__name__)

TRACKERS_FILE = "trackers.json"
"""In the output folder: the identity of the run in each tracker, for a resume, and the hash of its recipe."""
_RECIPE = "recipe"


class Writer(Protocol):
    """What a tracker must do; it may raise anything."""

    last: Mapping[str, int]
    """By prefix: the last step that it holds already, from earlier starts. Later ones are to come."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker shows it. done: steps of earlier starts; settings: the resolved recipe, without secrets."""

    name: str
    project: str
    folder: Path
    done: int
    settings: Mapping[str, Any]

    def known_identity(self, tracker: str) -> str | None:
        """Of a resumed run, and of one that was ended before its first checkpoint and begins again.

        A run from the start by another recipe is another one.
        """
        found = self._known().get(tracker)
        return found if isinstance(found, str) else None

    def identity(self, tracker: str) -> str:
        """The same of a run, over all its starts."""
        return self.known_identity(tracker) or self.remember(tracker, uuid.uuid4().hex[:16])

    def remember(self, tracker: str, identity: str) -> str:
        """Store an identity for later starts."""
        values = self._known() | {_RECIPE: self._digest(), tracker: identity}
        write_file(self.folder / TRACKERS_FILE, json.dumps(values).encode())
        return identity

    def _known(self) -> dict[str, Any]:
        """What earlier starts of this run stored."""
        found = self._read()
        return found if self.done or found.get(_RECIPE) == self._digest() else {}

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / TRACKERS_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class Tracker:
    """Writes scalars through a writer until it fails once; afterwards it does nothing."""

    def __init__(self, open_writer: Callable[[], Writer], *, name: str = "TensorBoard") -> None:
        self._name = name
        self._highest: dict[str, int] = {}
        """By prefix: the last step that went into the writer."""
        self._before: Mapping[str, int] = {}
        """The same at the last time that the run went back."""
        self._writer: Writer | None = None
        self._writer = self._guarded(open_writer)

    def log(self, step: int, values: Mapping[str, Any], *, prefix: str) -> None:
        """Write every finite number of ``values`` under ``prefix/name``, unless the step is there already."""
        if self._writer is None or step <= max(self._writer.last.get(prefix, 0), self._before.get(prefix, 0)):
            return
        self._highest[prefix] = max(step, self._highest.get(prefix, 0))
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        scalars = {f"{prefix}/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}
        self._guarded(partial(self._writer.log, step, scalars))

    def go_back(self) -> None:
        """The run goes on from an earlier step: steps that are there already are not written again."""
        self._before = dict(self._highest)

    def flush(self) -> None:
        if self._writer is not None:
            self._guarded(self._writer.flush)

    def close(self) -> None:
        if self._writer is not None:
            self._guarded(self._writer.close)
        self._writer = None

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        # Anything may come out of a tracker: a full disk, a protobuf that does not fit, its own writer thread's error.
        except Exception as error:
            self._writer = None
            reason = next(iter(str(error).splitlines()), "")  # SQLAlchemy adds the statement and a link
            logger.warning("%s stopped (%s: %s); training goes on without it", self._name, type(error).__name__, reason)
            return None


class _TensorBoardWriter:
    """Over torch's SummaryWriter."""

    def __init__(self, folder: Path, done: int) -> None:
        # Optional at run time: tensorboard fails to import beside some protobuf versions.
        from torch.utils.tensorboard import SummaryWriter

        refuse_link(folder)
        self._summary = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        self.last: Mapping[str, int] = {}
        self.flush, self.close = self._summary.flush, self._summary.close

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._summary.add_scalar(name, value, step)


def tensorboard_tracker(folder: Path, *, done: int) -> Tracker | None:
    """A tracker into ``folder``; None, and a line in the log, without the package.

    After a resume, points of steps later than ``done`` are hidden from the curves.
    """
    if find_spec("tensorboard") is None:
        logger.info(
            "TensorBoard is not installed, so the curves are in metrics.jsonl and loss_curve.png alone; "
            "pip install 'megadeberta[tensorboard]' brings it"
        )
        return None
    return Tracker(lambda: _TensorBoardWriter(folder, done))


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """One of ``logging.trackers``."""

    def open_writer() -> Writer:
        refuse_link(run.folder / _LOCAL_PLACES[name])
        return _OPENERS[name](run)

    return Tracker(open_writer, name=name)


def _wandb(run: TrackedRun) -> Writer:
    from megadeberta.observability.wandb_writer import WandbWriter

    return WandbWriter(run)


def _trackio(run: TrackedRun) -> Writer:
    from megadeberta.observability.trackio_writer import TrackioWriter

    return TrackioWriter(run)


def _mlflow(run: TrackedRun) -> Writer:
    from megadeberta.observability.mlflow_writer import MlflowWriter

    return MlflowWriter(run)


_OPENERS: dict[str, Callable[[TrackedRun], Writer]] = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}
_LOCAL_PLACES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow.db"}
"""In the output folder, where there is no server."""
