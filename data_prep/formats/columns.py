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

_ROWS = 1024
"""Of a batch: with a row of a megabyte it is a gigabyte, which is why it is not more."""


def _parquet_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = _columns(table.schema_arrow, options.text_keys)
        yield from _batches(table.iter_batches(batch_size=_ROWS, columns=columns), options, tally)
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


def _batches(batches: "Iterator[pyarrow.RecordBatch]", options: ReadOptions, tally: Tally) -> Iterator[str]:
    report = RowReport(tally)
    wanted = list(dict.fromkeys(key.split(".")[0] for key in options.text_keys))
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for record in batch.slice(start, _ROWS).select(_present(batch, wanted)).to_pylist():
                report.row += 1
                try:
                    document = clean(record_text(_as_text(record), options.text_keys))
                except BadLine as bad:
                    report.reject(bad.kind, bad.detail)
                    continue
                yield document


def _present(batch: "pyarrow.RecordBatch", wanted: list[str]) -> list[str]:
    names = set(batch.schema.names)
    return [name for name in wanted if name in names] + [n for n in batch.schema.names if _is_dotted(n, wanted)]


def _is_dotted(name: str, wanted: list[str]) -> bool:
    return "." in name and name.split(".")[0] in wanted


def _as_text(record: dict[str, Any]) -> dict[str, Any]:
    """Some writers store text as bytes."""
    return {
        name: value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
        for name, value in record.items()
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
