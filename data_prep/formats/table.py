"""The table of formats, and the choice by name."""

from importlib.util import find_spec

from megadeberta.data_prep.formats.base import Format
from megadeberta.data_prep.formats.columns import ARROW, PARQUET
from megadeberta.data_prep.formats.json_lines import JSON_LINES
from megadeberta.data_prep.formats.plain_text import TEXT
from megadeberta.data_prep.formats.rows import CSV, TSV
from megadeberta.data_prep.formats.tar import TAR
from megadeberta.data_prep.formats.warc import WARC
from megadeberta.data_prep.formats.wikipedia import WIKIEXTRACTOR, WIKIPEDIA
from megadeberta.data_prep.options import AUTO_FORMAT
from megadeberta.errors import ConfigError

FORMATS: dict[str, Format] = {
    one.name: one for one in (TEXT, JSON_LINES, CSV, TSV, PARQUET, ARROW, WARC, WIKIPEDIA, WIKIEXTRACTOR, TAR)
}
"""By name, all that ``prep`` reads."""


def format_of_ending(ending: str) -> Format | None:
    """The format that a file's ending (".csv") promises; None if none."""
    return next((one for one in FORMATS.values() if ending.lower() in one.endings), None)


def check_format_name(name: str) -> None:
    """Refuse a ``--format`` that is neither "auto" nor in the table.

    Raises:
        ConfigError: names all formats.
    """
    if name != AUTO_FORMAT and name not in FORMATS:
        known = ", ".join(f"{one.name} ({one.summary})" for one in FORMATS.values())
        raise ConfigError(f"--format={name} is no format; known: {AUTO_FORMAT} (by each file's first bytes), {known}")


def what_is_missing(file_format: Format) -> str:
    """What has to be installed to read the format, for the user; empty if nothing."""
    package, _, extra = file_format.needs.partition(":")
    if not package or find_spec(package) is not None:
        return ""
    return f"reading {file_format.summary} needs {package}: pip install 'megadeberta[{extra}]'"
