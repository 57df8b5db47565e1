"""Logging of one rank: plain lines, from rank 0 everything, from the others warnings; no noise and no secrets."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import TextIO

from megadeberta.config.redact import HIDDEN, is_secret_name
from megadeberta.config.terminal import line_width, wrap_words

_YELLOW, _RED, _PLAIN = "\033[33m", "\033[31m", "\033[0m"
_SHORTEST_SECRET = 8
# Third parties whose log lines below ERROR, and whose warnings of deprecation, are about their own insides.
_NOISY_LOGGERS = {"DeepSpeed", "matplotlib", "tensorboard", "fsspec", "PIL", "transformers"}
_NOISY_MODULES = r"(torch|deepspeed|tensorboard|transformers)(\.|$)"


def set_up_logging(
    rank: int,
    *,
    level: int = logging.INFO,
    environ: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send this process's log to ``stream`` (standard error); a second call replaces the first.

    ``level`` is rank 0's; other ranks log warnings.

    Errors of third parties stay. Call it before or after importing them, in any order.
    """
    environ = os.environ if environ is None else environ
    handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(_RankFormatter(rank, environ, colour=_wants_colour(handler.stream, environ)))
    handler.addFilter(_is_worth_reading)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, _RankFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level if rank == 0 else logging.WARNING)
    # A filter, not a level: DeepSpeed sets the level of its logger when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_take_over)
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=_NOISY_MODULES)
    logging.captureWarnings(True)


class _StandardError(logging.StreamHandler[TextIO]):
    """To what standard error is at that moment: a bar of rich puts lines above itself while it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _RankFormatter(logging.Formatter):
    def __init__(self, rank: int, environ: Mapping[str, str], *, colour: bool) -> None:
        super().__init__("%(message)s")
        self._prefix = f"[rank {rank}] " if rank else ""
        self._colour, self._width = colour, line_width(environ)
        values = {value for name, value in environ.items() if is_secret_name(name)}
        self._secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        mark = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        text = wrap_words(f"{self._prefix}{mark}{text}", self._width)
        if mark and self._colour:
            colour = _RED if record.levelno >= logging.ERROR else _YELLOW
            text = text.replace(mark, f"{colour}{mark}{_PLAIN}", 1)
        return text


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.split(".")[0] not in _NOISY_LOGGERS


def _take_over(record: logging.LogRecord) -> bool:
    """DeepSpeed's logger does not propagate and has a handler of its own on standard output: answer in its place."""
    logging.getLogger().handle(record)
    return False


def _wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or stream.isatty()
