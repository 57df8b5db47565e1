"""A corpus that comes through a pipe: kept in a file while it is prepared, since every text is read twice."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megadeberta.data_prep.options import PrepOptions
from megadeberta.errors import ConfigError
from megadeberta.storage import open_new, storage_errors

_GIVEN = Path("-")
_COPY = ".standard-input"


@contextmanager
def standard_input(options: PrepOptions) -> Iterator[PrepOptions]:
    """``options`` with a copy of standard input, inside the output folder, in the place of "-"; removed at the end.

    Raises:
        ConfigError: "-" is given twice, or nothing is piped in.
        StorageError: the copy cannot be written.
    """
    count = (*options.corpora, *options.valid_corpora).count(_GIVEN)
    if count == 0:
        yield options
        return
    if count > 1:
        raise ConfigError("- is given more than once; standard input can be read only once")
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("- reads a corpus from standard input, and nothing is piped into it")
    copy = options.output / _COPY
    try:
        with storage_errors(copy):
            options.output.mkdir(parents=True, exist_ok=True)
            with open_new(copy) as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        yield replace(
            options,
            corpora=tuple(copy if path == _GIVEN else path for path in options.corpora),
            valid_corpora=tuple(copy if path == _GIVEN else path for path in options.valid_corpora),
        )
    finally:
        copy.unlink(missing_ok=True)
