"""Files with one record per row: CSV, TSV, JSON lines, JSON and Parquet, told by their ending. Never torch."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megadeberta.errors import ConfigError, DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
Record = dict[str, Any]
_LONGEST_FIELD = 2**27


def read_table(path: Path) -> list[Record]:
    """The rows of a table by the names of its columns. A CSV or TSV begins with a header.

    Raises:
        DataError: not there, empty, damaged, or of another ending.
        ConfigError: Parquet without its package.
    """
    readers = {
        ".csv": read_delimited,
        ".tsv": read_delimited,
        ".jsonl": read_json_lines,
        ".json": _read_json_list,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: ends in none of {', '.join(ENDINGS)}; convert it to one of them")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def read_delimited(path: Path, *, quoted: bool | None = None, header: Sequence[str] | None = None) -> list[Record]:
    """A CSV or TSV.

    Args:
        quoted: whether quotation marks enclose fields; None: in a CSV. GLUE has them in its texts.
        header: names of the columns of a file without a header.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    is_csv = path.suffix == ".csv"
    encloses = is_csv if quoted is None else quoted
    lines = csv.reader(
        io.StringIO(read_text(path), newline=""),
        delimiter="," if is_csv else "\t",
        quoting=csv.QUOTE_MINIMAL if encloses else csv.QUOTE_NONE,
    )
    try:
        names = list(header) if header is not None else next(lines, [])
        rows = [row for row in lines if row]
    except csv.Error as error:
        raise DataError(f"{path}: is no table that can be read ({error})") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} fields where the header has {len(names)}: {row[:3]}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def read_json_lines(path: Path) -> list[Record]:
    """One JSON object per line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_as_record(_parse(line, f"{path}: line {number}"), f"{path}: line {number}"))
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return _parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: byte {error.start}: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def need_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str], source: Path, *, hint: str = "") -> None:
    """Refuse a table without some columns, before anything is computed.

    Raises:
        DataError: names the first one, and those that are there.
    """
    there = list(dict.fromkeys(name for row in rows[:100] for name in row))
    for name in names:
        if name not in there:
            found = ", ".join(map(repr, there[:20])) or "none"
            raise DataError(f"{source}: has no column {name!r}, but {found}{hint}")
        for number, row in enumerate(rows, start=1):
            if row.get(name) is None:
                raise DataError(f"{source}: row {number} has no {name!r}; fill it in or leave the row out")


def find_split(folder: Path, stems: Sequence[str], endings: Sequence[str] = ENDINGS) -> Path | None:
    """The first file of these stems and endings that is in the folder."""
    candidates: Iterator[Path] = (folder / f"{stem}{ending}" for stem in stems for ending in endings)
    return next((path for path in candidates if path.is_file()), None)


def _read_json_list(path: Path) -> list[Record]:
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: is a JSON {type(content).__name__}, where a list of objects is needed; or use .jsonl")
    return [_as_record(row, f"{path}: entry {number}") for number, row in enumerate(content)]


def _read_parquet(path: Path) -> list[Record]:
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{path}: Parquet needs pyarrow: pip install 'megadeberta[parquet]'")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Record] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file that can be read ({str(error).splitlines()[0][:150]})") from None
    return rows


def _parse(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not JSON ({error})") from None


def _as_record(value: Any, source: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{source}: is a {type(value).__name__}, where an object with named values is needed")
    return value
