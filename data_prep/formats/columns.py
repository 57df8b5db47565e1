"""Tables stored by column: Parquet, and Arrow as Hugging Face ``datasets`` keeps it. Read batch by batch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.formats.base import Format, RowReport
from megadeberta.data_prep.lines import BadLine
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.records import record_text
from megadeberta.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_ROWS, _BATCH_BYTES = 64, 64 << 20
"""Of a batch at most: a writer's dictionary has a megabyte, and all rows may be the same entry of it."""


def _parquet_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = _columns(table.schema_arrow, options.text_keys)
        rows = _rows_at_once(table.metadata, set(columns), options.max_line_bytes)
        yield from _batches(table.iter_batches(batch_size=rows, columns=columns), options, tally)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the Parquet file is damaged ({_first_line(error)}); fetch it again or leave it out"
        ) from error


def _arrow_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow

    try:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        _columns(reader.schema, options.text_keys)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches)) if is_file else reader
        yield from _batches(batches, options, tally)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"the Arrow file is damaged ({_first_line(error)}); fetch it again or leave it out") from error


def _rows_at_once(metadata: "pyarrow.parquet.FileMetaData", columns: set[str], max_line_bytes: int) -> int:
    """Rows that are about ``_BATCH_BYTES`` in the group with the longest.

    Raises:
        DataError: all rows of a group are too long; to find out by reading them would take their memory.
    """
    longest = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] in columns)
        longest = max(longest, size // max(1, group.num_rows))
    if longest > max_line_bytes:
        raise DataError(
            f"has rows of {longest} bytes, longer than --max-line-bytes={max_line_bytes}; raise it or divide the texts"
        )
    return min(max(_BATCH_BYTES // max(1, longest), 1), _ROWS)


def _batches(batches: "Iterator[pyarrow.RecordBatch]", options: ReadOptions, tally: Tally) -> Iterator[str]:
    report = RowReport(tally)
    wanted = list(dict.fromkeys(key.split(".")[0] for key in options.text_keys))
    for batch in batches:
        names = _present(batch, wanted)
        # Row by row: all of a batch as Python's strings are as much memory again.
        for values in zip(*(batch.column(name) for name in names), strict=True):
            report.row += 1
            try:
                text = record_text(_as_text(dict(zip(names, values, strict=True))), options.text_keys)
            except BadLine as bad:
                report.reject(bad.kind, bad.detail)
                continue
            if len(text) > options.max_line_bytes:
                report.reject("line_too_long", f"{len(text)} characters", num_bytes=len(text.encode()))
                continue
            yield clean(text)


def _present(batch: "pyarrow.RecordBatch", wanted: list[str]) -> list[str]:
    names = set(batch.schema.names)
    return [name for name in wanted if name in names] + [n for n in batch.schema.names if _is_dotted(n, wanted)]


def _is_dotted(name: str, wanted: list[str]) -> bool:
    return "." in name and name.split(".")[0] in wanted


def _as_text(record: "dict[str, pyarrow.Scalar]") -> dict[str, Any]:
    """The values as Python's. Some writers store text as bytes."""
    values = {name: value.as_py() for name, value in record.items()}
    return {
        name: value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def _columns(schema: "pyarrow.Schema", keys: tuple[str, ...]) -> list[str]:
    """The columns to read.

    Raises:
        DataError: a key names none.
    """
    columns = []
    for key in keys:
        column = key if key in schema.names else key.split(".")[0]
        if column not in schema.names:
            names = ", ".join(map(repr, schema.names[:20])) or "none"
            raise DataError(f"no column {key!r}; --text-key names the column of the text, of {names}")
        columns.append(column)
    return columns


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


PARQUET = Format(
    name="parquet", summary="Parquet", endings=(".parquet", ".pq"), texts=_parquet_texts, needs="pyarrow:parquet"
)
ARROW = Format(
    name="arrow", summary="Arrow", endings=(".arrow", ".feather"), texts=_arrow_texts, needs="pyarrow:parquet"
)
