"""Tables stored by column: Parquet, and Arrow as Hugging Face ``datasets`` keeps it. Read batch by batch."""

from collections.abc import Iterable, Iterator
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
_LARGE = 4 << 20
"""A dictionary, or a chunk of values that begin as the ones before them, of which each row may be as large as all."""
_READ_BYTES = 1 << 20
_MOST_BYTES_OF_A_CHARACTER = 4


def _parquet_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    # Arrow's own allocator keeps what large values took and gave back.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=_READ_BYTES)
        columns = _columns(table.schema_arrow, options.text_keys)
        rows = _rows_at_once(table.metadata, set(columns), options.max_line_bytes)
        if large := _large_dictionaries(file, table.metadata, set(columns)):
            table = pyarrow.parquet.ParquetFile(file, buffer_size=_READ_BYTES, read_dictionary=large)
        yield from _batches(table.iter_batches(batch_size=rows, columns=columns), options, tally)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the Parquet file is damaged ({_first_line(error)}); fetch it again or leave it out"
        ) from error


def _arrow_texts(file: BinaryIO, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
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
    longest, most = 0, _ROWS
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] in columns)
        longest = max(longest, size // max(1, group.num_rows))
        if size > _LARGE and any("DELTA_BYTE_ARRAY" in one.encodings for one in chunks):
            most = 1
    if longest > max_line_bytes:
        raise DataError(
            f"has rows of {longest} bytes, longer than --max-line-bytes={max_line_bytes}; raise it or divide the texts"
        )
    return min(max(_BATCH_BYTES // max(1, longest), 1), most)


def _batches(batches: "Iterator[pyarrow.RecordBatch]", options: ReadOptions, tally: Tally) -> Iterator[str]:
    report = RowReport(tally)
    wanted = list(dict.fromkeys(key.split(".")[0] for key in options.text_keys))
    for batch in batches:
        columns = {name: batch.column(name) for name in _present(batch, wanted)}
        sizes = _sizes(columns.values(), batch.num_rows)
        del batch  # else it is there beside the next one
        # Row by row: all of a batch as Python's strings are as much memory again.
        for row, (characters, size) in enumerate(sizes):
            report.row += 1
            if characters > options.max_line_bytes:
                report.reject("line_too_long", f"{characters} characters", num_bytes=size)
                continue
            values = {name: column[row] for name, column in columns.items()}
            try:
                text = record_text(_as_text(values), options.text_keys)
            except BadLine as bad:
                report.reject(bad.kind, bad.detail, num_bytes=size)
                continue
            if len(text) > options.max_line_bytes:
                report.reject("line_too_long", f"{len(text)} characters", num_bytes=len(text.encode()))
                continue
            yield clean(text)
        del columns


def _large_dictionaries(file: BinaryIO, metadata: "pyarrow.parquet.FileMetaData", columns: set[str]) -> list[str]:
    """The columns with a dictionary that is to stay one: a batch of rows may be its largest entry in every row."""
    found = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema
            is_text = name in columns and chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page
            is_large = chunk.total_uncompressed_size > _LARGE
            if is_text and is_large and _dictionary_bytes(file, chunk.dictionary_page_offset) > _LARGE:
                found.add(name)
    return sorted(found)


def _dictionary_bytes(file: BinaryIO, offset: int) -> int:
    """The unpacked size of a dictionary, by the header of its page: Thrift's compact protocol.

    Its first fields are 32-bit numbers: kind, unpacked and packed size. What is no such header is for the reader.
    """
    file.seek(offset)
    header = file.read(12)
    place, number = 0, 0
    for _ in ("kind", "size"):
        number, shift, place = 0, 0, place + 1  # a field begins with a byte of its number and type
        while place < len(header):
            byte = header[place]
            number, shift, place = number | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                break
    return number >> 1  # the sign is in the lowest bit


def _sizes(columns: "Iterable[pyarrow.Array]", rows: int) -> list[tuple[int, int]]:
    """Characters (at least) and bytes of text in each row, of columns that are text and not records."""
    import pyarrow
    import pyarrow.compute

    characters, sizes = [0] * rows, [0] * rows
    for column in columns:
        is_dictionary = pyarrow.types.is_dictionary(column.type)
        texts = column.dictionary if is_dictionary else column
        try:
            lengths = pyarrow.compute.binary_length(texts)
        except pyarrow.ArrowNotImplementedError:
            continue
        if pyarrow.types.is_binary(texts.type) or pyarrow.types.is_large_binary(texts.type):
            counts = pyarrow.compute.divide(lengths, _MOST_BYTES_OF_A_CHARACTER)
        else:
            counts = pyarrow.compute.utf8_length(texts)
        for found, total in ((counts, characters), (lengths, sizes)):
            of_rows = (found.take(column.indices) if is_dictionary else found).to_pylist()
            total[:] = [known + (more or 0) for known, more in zip(total, of_rows, strict=True)]
    return list(zip(characters, sizes, strict=True))


def _present(batch: "pyarrow.RecordBatch", wanted: list[str]) -> list[str]:
    names = set(batch.schema.names)
    return [name for name in wanted if name in names] + [n for n in batch.schema.names if _is_dotted(n, wanted)]


def _is_dotted(name: str, wanted: list[str]) -> bool:
    return "." in name and name.split(".")[0] in wanted


def _as_text(record: "dict[str, pyarrow.Scalar]") -> dict[str, Any]:
    """The values as Python's. Some writers store text as bytes, some bytes as text."""
    try:
        values = {name: value.as_py() for name, value in record.items()}
    except UnicodeDecodeError as error:
        raise BadLine("invalid_utf8", f"byte {error.object[error.start]:#x} at {error.start}") from error
    return {
        name: value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def _columns(schema: "pyarrow.Schema", keys: tuple[str, ...]) -> list[str]:
    """The columns to read.

    Raises:
        DataError: a key names none, or several.
    """
    columns = []
    for key in keys:
        column = key if key in schema.names else key.split(".")[0]
        if column not in schema.names:
            names = ", ".join(map(repr, schema.names[:20])) or "none"
            raise DataError(f"no column {key!r}; --text-key names the column of the text, of {names}")
        if (number := schema.names.count(column)) > 1:
            raise DataError(f"{number} columns are named {column!r}; give them different names")
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
