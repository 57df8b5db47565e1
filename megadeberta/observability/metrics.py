"""``metrics.jsonl``: one JSON object a line, whole lines only, always the joined log of all starts of a run."""

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from megadeberta.errors import ConfigError
from megadeberta.storage import write_file

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss_curve.png"
RECIPE_FILE = "recipe.json"
KERNELS_FILE = "kernels.txt"
TENSORBOARD_FOLDER = "tensorboard"
"""Names of what a run leaves in its output folder beside the checkpoints."""

SOURCE_MARK = "/"
"""Between the name of a validation value and that of its source: ``valid_mlm_loss/en``."""
SAVED = "saved"
"""In a line about a save: whether the checkpoint was committed."""

Record = dict[str, Any]


_MOST_WAITING_BYTES = 16 << 20
"""Of lines that the disk refused: some ten thousand steps."""


class MetricsFile:
    """Appends records; rank 0 only. Each is one write to the kernel: a killed process loses none that was logged.

    A disk that refuses does not end training: the lines wait, and are written with a later one.
    """

    def __init__(self, path: Path) -> None:
        """Open for appending; use ``create`` or ``resume`` to say what happens to lines of an earlier start."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting = b""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Begin an empty file; lines of an earlier start that left no checkpoint are dropped."""
        return cls._with_lines(path, [])

    @classmethod
    def resume(cls, path: Path, step: int) -> Self:
        """Keep the whole lines of steps up to ``step``, which the checkpoint holds; drop later ones and half a line."""
        return cls._with_lines(path, [line for line, record in _whole_lines(path) if record["step"] <= step])

    @classmethod
    def _with_lines(cls, path: Path, lines: list[bytes]) -> Self:
        content = b"".join(lines)
        # A link of either kind is replaced, so that what it leads to stays as it is.
        is_own = path.exists() and not path.is_symlink() and path.stat().st_nlink == 1
        if not is_own or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        return cls(path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record. Floats come back exactly; one that is not finite is stored as null."""
        record = {"step": step} | {name: _plain(value) for name, value in values.items()}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if len(self._waiting) + len(line) > _MOST_WAITING_BYTES:
            logger.warning("%s: the line of step %d is lost, as the disk has refused for long", self.path, step)
            return
        self._waiting += line
        self._write_waiting()

    def _write_waiting(self) -> None:
        late = self._waiting.count(b"\n") - 1
        try:
            written = os.write(self._descriptor, self._waiting)
            reason = os.strerror(errno.ENOSPC)  # of a write that ends early
        except OSError as error:
            written, reason = 0, error.strerror or str(error)
        self._waiting = self._waiting[written:]
        if self._waiting and not late:
            logger.warning("%s: cannot be written: %s. Training goes on; the lines wait for space", self.path, reason)
        elif late > 0 and not self._waiting:
            logger.warning("%s: written again, with %d lines that had waited", self.path, late)

    def close(self) -> None:
        """Close the file; lines that the disk still refuses are lost, with a warning."""
        if self._waiting:
            self._write_waiting()
        if self._waiting:
            logger.warning("%s: the last %d lines could not be written", self.path, self._waiting.count(b"\n"))
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path, *, refuse_damaged: bool = False) -> list[Record]:
    """All whole records of a metrics file, in order; none if there is no file.

    Args:
        refuse_damaged: a file without a whole record is an error, and not a warning and no records.

    Raises:
        ConfigError: no line of the file is whole.
    """
    return [record for _, record in _whole_lines(path, refuse_damaged=refuse_damaged)]


def _whole_lines(path: Path, *, refuse_damaged: bool = False) -> list[tuple[bytes, Record]]:
    if not path.exists():
        return []
    found, broken = [], 0
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # behind the last line end: nothing, or half a line
    for line in lines:
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError):
            broken += 1
            continue
        found.append((line + b"\n", record))
    if refuse_damaged and broken and not found:
        raise ConfigError(f"{path}: none of its {broken} lines is whole; the file is damaged, put a copy of it back")
    if broken:
        logger.warning("%s: %d damaged line(s) left out", path, broken)
    return found


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
