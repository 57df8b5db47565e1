"""TensorBoard beside the metrics file. It may fail; training goes on and says so once."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """The part of torch's SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Writes scalars through a writer until it fails once; afterwards it does nothing."""

    def __init__(self, open_writer: Callable[[], Writer]) -> None:
        self._writer: Writer | None = None
        self._writer = self._guarded(open_writer)

    def log(self, step: int, values: Mapping[str, Any], *, prefix: str) -> None:
        """Write every finite number of ``values`` under ``prefix/name``."""
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._guarded(partial(self._scalar, f"{prefix}/{name}", value, step))

    def flush(self) -> None:
        if self._writer is not None:
            self._guarded(self._writer.flush)

    def close(self) -> None:
        if self._writer is not None:
            self._guarded(self._writer.close)
        self._writer = None

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        # Anything may come out of a tracker: a full disk, a protobuf that does not fit, its own writer thread's error.
        except Exception as error:
            self._writer = None
            logger.warning("TensorBoard stopped (%s: %s); training goes on without it", type(error).__name__, error)
            return None


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

    def open_writer() -> Writer:
        # Optional at run time: tensorboard fails to import beside some protobuf versions.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    return Tracker(open_writer)
